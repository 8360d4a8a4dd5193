# A blank that gets another one's text, place, tokens or end, a stream that says other
# things than the plain answer, or a bad request for blanks that disturbs others.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/infill';
my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 4000)->conf(locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /small/ { glm_pass unix:%%SOCKET%%; glm_buffer_size 1k; }
        location /only/ { glm_pass unix:%%SOCKET%%; glm_api infill; }
        location /none/ { glm_pass unix:%%SOCKET%%; glm_api score; }
END

sub infill {
    my (%body) = @_;
    my $r = $t->post($URI, \%body);
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    return json($r->{body});
}
sub stream {
    my ($uri, %body) = @_;
    my $c = $t->post($uri, { %body, stream => TRUE }, start => 1);
    my $r = $c->read_head or die "no answer\n";
    die "status $r->{status}\n" if $r->{status} != 200;
    return data_events($c->events);
}

# The shape

my $P = 'a [MASK] b [MASK] c fake: tokens=2';
my $j = infill(prompt => $P);
is_deeply([ sort keys %$j ], [ qw(choices created id model object system_fingerprint usage) ], 'keys of the answer');
is($j->{object}, 'infill', 'object');
like($j->{id}, qr/^infill-./, 'id');
my %end = (finish_reason => 'stop', stop_reason => undef, logprobs => undef);
is_deeply($j->{choices}, [ { index => 0, text => 'a t256 t257  b t256 t257  c fake: tokens=2', blanks => [
    { index => 0, start => 2, end => 12, text => 't256 t257 ', token_ids => [ 256, 257 ], %end },
    { index => 1, start => 15, end => 25, text => 't256 t257 ', token_ids => [ 256, 257 ], %end } ] } ],
    'the choice') || diag(to_json($j));
is($j->{usage}{completion_tokens}, 4, 'all blanks are counted');
is(json((split /\n/, $t->read_file($log))[-1])->{op}, 2, 'INFILL is what is asked');

# Each sample has blanks of its own; offsets count characters

$j = infill(prompt => "\x{4f60}\x{597d} [MASK] \x{1f600} [MASK] [MASK] fake: tokens=3 bychoice", n => 3, logprobs => 1);
for my $c (@{ $j->{choices} }) {
    my $i = $c->{index};
    is(join('|', map { $_->{text} } @{ $c->{blanks} }), join('|', ("c$i.0 c$i.1 c$i.2 ") x 3), "choice $i: its own fills");
    is_deeply([ map { substr $c->{text}, $_->{start}, $_->{end} - $_->{start} } @{ $c->{blanks} } ],
        [ map { $_->{text} } @{ $c->{blanks} } ], "choice $i: offsets");
    is_deeply([ map { scalar @{ $_->{logprobs}{tokens} } } @{ $c->{blanks} } ], [ 3, 3, 3 ], "choice $i: logprobs");
}

# Where a blank may stand, and how many

$j = infill(prompt => '[MASK][MASK]', max_tokens => 1);
is_deeply([ map { [ @$_{qw(start end)} ] } @{ $j->{choices}[0]{blanks} } ], [ [ 0, 5 ], [ 5, 10 ] ], 'first and last place');
$j = infill(prompt => 'a [MASK] b [MASK]', max_tokens => 0);
is_deeply([ map { [ @$_{qw(start end text finish_reason)}, scalar @{ $_->{token_ids} } ] } @{ $j->{choices}[0]{blanks} } ],
    [ [ 2, 2, '', 'length', 0 ], [ 5, 5, '', 'length', 0 ] ], 'max_tokens 0');
$j = infill(prompt => '[MASK] ' x 200, max_tokens => 1);
is(scalar @{ $j->{choices}[0]{blanks} }, 200, '200 blanks');
is($j->{choices}[0]{blanks}[199]{index}, 199, 'in their order');
is_deeply(infill(prompt => 'a [sMASK] [MASK]', max_tokens => 1)->{warnings},
    [ 'GLM-130B was not trained with [sMASK]: use [MASK] or [gMASK].' ], '[sMASK] has a warning');
ok(!exists infill(prompt => 'a [MASK]', max_tokens => 1)->{warnings}, 'others have none');
check_error($t->post($URI, { prompt => 'a [MASK]', parse_masks => FALSE }), 400, 'parse_masks false: no mask is left',
    param => 'prompt');
is(infill(prompt => $P, request_id => 'mine')->{id}, 'infill-mine', 'request_id');

# A stream says the same, at any window, and each chunk the blank's index

for my $uri ($URI, "/small$URI") {
    for my $more ({}, { logprobs => 2 }, { return_token_ids => TRUE }, { n => 2 }, { stream_interval => 3 },
        { logprobs => 0, return_token_ids => TRUE, n => 3 })
    {
        my $name = "$uri " . to_json($more);
        my %body = (prompt => 'a [MASK] b [MASK] fake: tokens=40 bytes=30 delay=1', max_tokens => 40, %$more);
        my $plain = infill(%body);
        my @c = stream($uri, %body, stream_options => { include_usage => TRUE });
        is_deeply((pop @c)->{usage}, $plain->{usage}, "$name: usage");
        my (%got, %text);
        for my $c (map { @{ $_->{choices} } } @c) {
            if (!defined $c->{blank}) {
                $text{ $c->{index} } = $c->{text};
                $got{ $c->{index} }[ $_->{index} ] = { %{ $got{ $c->{index} }[ $_->{index} ] }, %$_ } for @{ $c->{blanks} };
                next;
            }
            my $b = $got{ $c->{index} }[ $c->{blank} ] //= { text => '', logprobs => undef };
            $b->{text} .= $c->{text};
            @$b{qw(finish_reason stop_reason)} = @$c{qw(finish_reason stop_reason)};
            push @{ $b->{token_ids} }, @{ $c->{token_ids} } if $c->{token_ids};
            for my $k (keys %{ $c->{logprobs} // {} }) {
                push @{ $b->{logprobs}{$k} }, @{ $c->{logprobs}{$k} };
            }
        }
        for my $c (@{ $plain->{choices} }) {
            $more->{return_token_ids} or delete $_->{token_ids} for @{ $c->{blanks} };
            is_deeply($got{ $c->{index} }, $c->{blanks}, "$name: blanks of choice $c->{index}");
            is($text{ $c->{index} }, $c->{text}, "$name: text of choice $c->{index}");
        }
    }
}
my @c = stream($URI, prompt => $P);
like(join('', map { $_->{choices}[0]{blank} // 'x' } @c), qr/^0+1+x$/, 'chunks tell their blank') || diag(to_json(\@c));
is($c[-1]{choices}[0]{text}, 'a t256 t257  b t256 t257  c fake: tokens=2', 'the last has the whole');
is($c[-1]{choices}[0]{finish_reason}, 'stop', 'and a finish_reason');
@c = stream($URI, prompt => 'a [MASK] b [MASK] fake: tokens=2 delay=20', stream_options => { include_usage => TRUE,
    continuous_usage_stats => TRUE });
is($c[-2]{usage}{completion_tokens}, 4, 'continuous_usage_stats counts the blanks before');
@c = stream($URI, prompt => 'x [sMASK] fake: tokens=1');
ok($c[0]{warnings} && $c[-1]{warnings}, 'a warning in a stream');

# A long text comes whole through a small window

my $long = 'word ' x 700;
@c = stream("/small$URI", prompt => "$long [MASK] fake: tokens=2");
is($c[-1]{choices}[0]{text}, "$long t256 t257  fake: tokens=2", 'a long text in a small window');

my %huge = (prompt => 'a [MASK] b fake: tokens=3 bytes=100000', n => 2);
my $fill = join '', map { my $i = $_; map { substr 'abcdefghijklmnop', ($i + $_) % 16, 1 } 0 .. 99_999 } 0 .. 2;
for my $uri ($URI, "/small$URI") {
    ok((json($t->post($uri, \%huge)->{body}))->{choices}[1]{text} eq "a $fill b fake: tokens=3 bytes=100000", "$uri: 300,000 bytes");
    @c = stream($uri, %huge);
    ok($c[-1]{choices}[0]{text} eq "a $fill b fake: tokens=3 bytes=100000", "$uri: 300,000 bytes, stream");
}

# A client that leaves in the second blank

my $c = $t->post($URI, { prompt => 'a [MASK] [MASK] fake: tokens=100 delay=5', max_tokens => 100, stream => TRUE }, start => 1);
$c->read_head;
1 until (json($c->event->{data})->{choices}[0]{blank} // 0) == 1;
$c->close;
$t->idle(10, 'a client that leaves frees all');

# Bad requests, while a stream runs beside them

my $beside = $t->beside(prompt => 'fake: tokens=1500 delay=2', max_tokens => 1500);
$t->wait_stat('num_requests_running', 1, 10);
my @bad = (
    [ { prompt => 'no blank' }, 'prompt', qr/mask/, 'no mask at all' ],
    [ { prompt => '' }, 'prompt', qr/empty/, 'an empty prompt' ],
    [ { }, 'prompt', qr/required/, 'no prompt' ],
    [ { prompt => [ 'a [MASK]', 'b [MASK]' ] }, 'prompt', qr/integers/, 'several prompts' ],
    [ { prompt => [] }, 'prompt', qr/empty/, 'no ids' ],
    [ { prompt => [ 1.5 ] }, 'prompt', qr/integers/, '1.5 among ids' ],
    [ { prompt => 7 }, 'prompt', qr/string/, 'a number' ],
    [ { prompt => [ 20000 ] }, 'prompt', qr/19999/, 'an unknown id' ],
    [ { prompt => "a [MASK] \0" }, 'prompt', qr/U\+0000/, 'NUL' ],
    [ { prompt => '[MASK]' . 'x' x 300_000 }, 'prompt', qr/262144/, 'longer than glm_max_prompt' ],
    [ { prompt => '[MASK]' . 'x' x 5000 }, 'max_tokens', qr/context/, 'longer than the context' ],
    [ { prompt => $P, max_tokens => -1 }, 'max_tokens', qr/0/, 'max_tokens -1' ],
    [ { prompt => $P, max_tokens => 1.5 }, 'max_tokens', qr/integer/, 'max_tokens 1.5' ],
    [ { prompt => $P, max_tokens => 100_000 }, 'max_tokens', qr/4000/, 'max_tokens beyond the context' ],
    [ { prompt => $P, n => 0 }, 'n', qr/1 to 128/, 'n 0' ],
    [ { prompt => $P, n => 65 }, 'n', qr/64/, 'n beyond the engine\'s' ],
    [ { prompt => $P, logprobs => 21 }, 'logprobs', qr/20/, 'logprobs 21' ],
    [ { prompt => $P, mode => 'unidirectional' }, 'mode', qr/bidirectional/, 'unidirectional' ],
    [ { prompt => $P, num_beams => 17 }, 'num_beams', qr/16/, 'beams beyond the limit' ],
    [ { prompt => $P, num_beams => 2, n => 3 }, 'n', qr/num_beams/, 'n above num_beams' ],
    [ { prompt => $P, stop => '' }, 'stop', qr/empty/, 'an empty stop' ],
    [ { prompt => $P, stream_options => {} }, 'stream_options', qr/stream/, 'stream_options without stream' ],
    [ { prompt => $P, parse_masks => 1 }, 'parse_masks', qr/true or false/, 'parse_masks 1' ],
    [ '{"prompt":"[MASK]","prompt":"[MASK]"}', undef, qr/duplicate/i, 'a key twice' ],
    [ '[]', undef, qr/object/, 'no object' ],
);
for (@bad) {
    my ($body, $param, $like, $name) = @$_;
    check_error($t->post($URI, $body), 400, $name, param => $param, like => $like);
}
check_error($t->post($URI, { prompt => $P, model => 'x' }), 404, 'another model', code => 'model_not_found');
check_error($t->get($URI), 405, 'GET');
check_error($t->post("/none$URI", { prompt => $P }), 404, 'glm_api leaves it out');
is($t->post("/only$URI", { prompt => $P })->{status}, 200, 'glm_api names it');
is($t->post('/only/infill', { prompt => 'fake: tokens=1' })->{status}, 200, 'and the editors\' with it');
check_error($t->post('/only/v1/score', {}), 404, 'and nothing else');
check_error($t->post($URI, { prompt => '[MASK] fake: error=501 code=not_implemented param=prompt' }), 501, 'an engine that cannot',
    type => 'not_implemented');
ok($t->stat('num_requests_running'), 'the stream beside still runs');
my ($text, $longest) = $beside->();
is($text, join('', map { 't' . (256 + $_ % 1000) . ' ' } 0 .. 1499), 'it has every token');
cmp_ok($longest // 99, '<', 10 * GLM::Test::patience(), 'and was never held up');

# An engine that talks nonsense of blanks is dropped; the next request is served

for my $words ('nofilled', 'badspan', 'blanks=5 skipblank') {
    my $r = $t->post($URI, { prompt => "a [MASK] [MASK] fake: tokens=2 $words" });
    ok($r && $r->{status} =~ /^50[03]$/, "$words: the request fails") || diag($r && $r->{body});
    $t->ready(10);
}
$t->allow(qr/broke the protocol/);

is(infill(prompt => $P)->{choices}[0]{blanks}[1]{text}, 't256 t257 ', 'and the engine is well');
$t->idle(10, 'nothing is left');
$t->done;
