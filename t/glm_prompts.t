# Prompts of one request that are mixed up, lost, or half refused: choices out of
# order, usage counted twice, one prompt's error beside another's answer.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 512)->conf(locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /big/ { glm_pass unix:%%SOCKET%%; glm_max_prompt 40m; client_max_body_size 40m; client_body_buffer_size 40m; }
END
my $URI = '/v1/completions';

# What was sent since the last call
my $at = 0;
sub sent {
    my $all = $t->read_file($log);
    my @lines = split /\n/, substr $all, $at;
    $at = length $all;
    return map { json($_) } @lines;
}

sub answer {
    my (%body) = @_;
    my $r = $t->post($URI, \%body);
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    return json($r->{body});
}

# Texts

my @P = map { "fake: tokens=$_ text=p$_." } 3, 1, 2;
my $j = answer(prompt => \@P);
is_deeply([ map { $_->{text} } @{ $j->{choices} } ], [ 'p3.p3.p3.', 'p1.', 'p2.p2.' ], 'three prompts in order');
is_deeply([ map { $_->{index} } @{ $j->{choices} } ], [ 0, 1, 2 ], 'their indices');
my $bytes = 2 * 3;
$bytes += length for @P;
is_deeply($j->{usage}, { prompt_tokens => $bytes, completion_tokens => 6, total_tokens => $bytes + 6,
    prompt_tokens_details => { cached_tokens => 0 } }, 'usage is their sum');
my @s = sent();
is(scalar @s, 3, 'a SUBMIT each');
is_deeply([ map { $_->{1} } @s ], \@P, 'with its text');
is_deeply([ map { "$_->{group_index}/$_->{group_count}" } @s ], [ '0/3', '1/3', '2/3' ], 'of one group');
ok($s[0]{group} && $s[0]{group} == $s[2]{group}, 'with one id');
answer(prompt => $P[1]);
is_deeply([ @{ (sent())[0] }{qw(group group_index group_count)} ], [ 0, 0, 0 ], 'one prompt has no group');

# Ids

$j = answer(prompt => [ map { [ unpack 'C*', "fake: tokens=$_ text=x" ] } 2, 4 ]);
is_deeply([ map { $_->{text} } @{ $j->{choices} } ], [ 'xx', 'xxxx' ], 'two lists of ids');
@s = sent();
is_deeply($s[1]{3}, [ unpack 'C*', 'fake: tokens=4 text=x' ], 'sent as ids');

# n

$j = answer(prompt => 'fake: tokens=2 bychoice', n => 3, cached => 1);
is_deeply([ map { [ $_->{index}, $_->{text} ] } @{ $j->{choices} } ],
    [ map { [ $_, "c$_.0 c$_.1 " ] } 0 .. 2 ], 'n');
is($j->{usage}{completion_tokens}, 6, 'all are counted');
is($j->{usage}{prompt_tokens}, 25, 'the prompt once') or diag(to_json($j));
is((sent())[0]{n}, 3, 'n is one SUBMIT');
$j = answer(prompt => [ 'fake: tokens=1 bychoice', 'fake: tokens=2 bychoice' ], n => 2);
is_deeply([ map { [ $_->{index}, $_->{text} ] } @{ $j->{choices} } ],
    [ [ 0, 'c0.0 ' ], [ 1, 'c1.0 ' ], [ 2, 'c0.0 c0.1 ' ], [ 3, 'c1.0 c1.1 ' ] ], 'prompt-major');
$j = answer(prompt => 'fake: tokens=2', n => 2, best_of => 5);
is(scalar @{ $j->{choices} }, 2, 'best_of');
is($j->{usage}{completion_tokens}, 10, 'counts all that was generated');
is_deeply([ @{ (sent())[-1] }{qw(n best_of)} ], [ 2, 5 ], 'and is sent');
check_error($t->post($URI, { prompt => 'a', best_of => 2, stream => TRUE }), 400, 'best_of and stream',
    param => 'best_of');
check_error($t->post($URI, { prompt => 'a', n => 3, best_of => 2 }), 400, 'best_of below n', param => 'best_of');
check_error($t->post($URI, { prompt => 'a', n => 65 }), 400, 'n over the engine\'s', param => 'n', like => qr/64/);

# Streams

sub streamed {
    my (%body) = @_;
    my (%text, %finish, @order);
    for my $c ($t->stream(%body)) {
        die 'no choice: ' . to_json($c) . "\n" unless @{ $c->{choices} } == 1 || $c->{usage};
        for (@{ $c->{choices} }) {
            die "after its end\n" if $finish{ $_->{index} };
            $text{ $_->{index} } .= $_->{text};
            $finish{ $_->{index} } = $_->{finish_reason} if $_->{finish_reason};
            push @order, $_->{index};
        }
        push @order, $c->{usage} if $c->{usage};
    }
    return (\%text, \%finish, \@order);
}
my ($text, $finish, $order) = streamed(prompt => [ 'fake: tokens=6 delay=20 text=a', 'fake: tokens=3 delay=30 text=b',
    'fake: tokens=1 text=c' ], stream_options => { include_usage => TRUE });
is_deeply($text, { 0 => 'aaaaaa', 1 => 'bbb', 2 => 'c' }, 'three streams in one');
is_deeply([ sort keys %$finish ], [ 0, 1, 2 ], 'each has its end');
like(join('', grep { !ref } @$order), qr/[12].*0/, 'they interleave');
is($order->[-1]{completion_tokens}, 10, 'usage of all, once, at the end');
is(scalar(grep { ref } @$order), 1, 'and only there');
($text) = streamed(prompt => [ 'fake: tokens=2 bychoice', 'fake: tokens=1 bychoice' ], n => 2);
is_deeply($text, { 0 => 'c0.0 c0.1 ', 1 => 'c1.0 c1.1 ', 2 => 'c0.0 ', 3 => 'c1.0 ' }, 'with n');
sent();
($text) = streamed(prompt => [ ('fake: tokens=300 text=abcdefgh') x 5 ], max_tokens => 300);
is_deeply([ map { length } values %$text ], [ (2400) x 5 ], 'long ones, beyond their windows');
@s = sent();
cmp_ok($s[0]{window} * 5, '<=', 16 * 1024, 'they share glm_buffer_size');

# Refused together

for my $stream (FALSE, TRUE) {
    my $r = $t->post($URI, { prompt => [ 'fake: tokens=50 delay=20', 'fake: error=400 param=prompt message=no',
        'fake: tokens=3' ], stream => $stream });
    check_error($r, 400, 'one bad prompt refuses all' . ($stream ? ', streamed' : ''), param => 'prompt');
}
$t->idle(5, 'the others are cancelled');
my $c = $t->post($URI, { prompt => [ 'fake: tokens=50 delay=10', 'fake: tokens=9 error=500 errorat=4 delay=10' ],
    stream => TRUE }, start => 1);
is($c->read_head->{status}, 200, 'one that breaks later');
my @e = map { $_->{data} } $c->events;
is($e[-1], '[DONE]', 'the stream ends');
ok(json($e[-2])->{error}, 'with an error');
$t->idle(5, 'the other prompt is cancelled');
$c = $t->post($URI, { prompt => [ ('fake: tokens=400 delay=20') x 8 ], n => 2, stream => TRUE }, start => 1);
$c->read_head;
$c->event;
$c->close;
$t->idle(5, 'a client that leaves frees all of them');

# Limits

check_error($t->post($URI, { prompt => [ ('a') x 257 ] }), 400, 'more prompts than the wire takes',
    param => 'prompt', like => qr/256/);
check_error($t->post($URI, { prompt => [ ('a') x 256 ], n => 128 }), 400, 'too many choices in all',
    param => 'prompt', like => qr/16384/);
check_error($t->post($URI, { prompt => [ 'a', '' ] }), 400, 'one is empty', param => 'prompt');
check_error($t->post($URI, { prompt => [ [ 1 ], [] ] }), 400, 'one has no ids', param => 'prompt');
check_error($t->post($URI, { prompt => [ [ 1 ], [ 30000 ] ] }), 400, 'an unknown id in the second',
    param => 'prompt', like => qr/30000/);
check_error($t->post($URI, { prompt => [ map { {} } 1 .. 12000 ] }), 400, '12,000 objects', param => 'prompt');
$j = answer(prompt => [ ('fake: tokens=1 text=y') x 256 ]);
is_deeply([ scalar @{ $j->{choices} }, scalar grep { $_->{text} ne 'y' } @{ $j->{choices} } ], [ 256, 0 ],
    '256 prompts');
is_deeply([ map { $_->{index} } @{ $j->{choices} } ], [ 0 .. 255 ], 'in order');
my $r = $t->post($URI, { prompt => [ ('x' x 9000) x 400 ] });
check_error($r, 413, 'more than nginx takes');


# More than the engine takes of one, or the ring of all

my $x = 'x' x 3_000_000;
check_error($t->post("/big$$_[0]", $$_[1]), 400, "3 MB: $$_[2]", param => $$_[2], like => qr/for the engine: 300\d{4} bytes, 2097152 at most/)
    for [ $URI, { prompt => $x }, 'prompt' ], [ '/v1/chat/completions', { messages => [ { role => 'user', content => $x } ] }, 'messages' ],
    [ '/v1/infill', { prompt => "[MASK]$x" }, 'prompt' ], [ '/v1/score', { prompt => 'a', choices => [ $x ] }, 'choices' ];
check_error($t->post("/big$URI", { prompt => [ ('x' x 1_900_000) x 3 ] }), 400, '5.7 MB of three prompts', param => 'prompt',
    like => qr/for the engine together: 570\d{4} bytes, 2097152 at most/);

# Lost

is($t->post($URI, { prompt => [ 'fake: tokens=1 hangat=1', 'fake: tokens=1' ] }, timeout => 1), undef, 'one hangs');
$t->idle(5, 'and is cancelled with its client');
$t->expect_end('engine');
$c = $t->post($URI, { prompt => [ ('fake: tokens=500 delay=5') x 3 ], stream => TRUE }, start => 1);
$c->read_head;
$c->event;
$r = $t->post($URI, { prompt => [ ('fake: tokens=500 delay=5') x 2, 'fake: dieat=3 delay=5' ] });
check_error($r, 503, 'an engine that dies with several prompts', code => 'engine_unavailable');
@e = map { $_->{data} } $c->events;
is(json($e[-2])->{error}{code}, 'engine_unavailable', 'and with several in a stream');
is($t->get('/health')->{status}, 503, 'the worker goes on');
$t->done;
