# A stream whose frames, order, counts or bytes differ from what clients parse, or
# whose text differs from that of the plain answer.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine('--max-num-seqs', 8)->run->ready;

my $P = 'English: Where is the file? German:';
my @P = (prompt => $P, temperature => 0);
my $URI = '/v1/completions';

# Frames

my $c = $t->post($URI, { @P, stream => TRUE }, start => 1);
my $r = $c->read_head;
is($r->{status}, 200, 'status');
is($r->{headers}{'content-type'}, 'text/event-stream; charset=utf-8', 'Content-Type');
is($r->{headers}{'cache-control'}, 'no-cache', 'Cache-Control');
is($r->{headers}{'x-accel-buffering'}, 'no', 'X-Accel-Buffering');
ok($r->{headers}{'x-request-id'}, 'x-request-id');
is($r->{headers}{'content-length'}, undef, 'no Content-Length');
my @e = $c->events;
is_deeply([ grep { defined $_->{bad} } @e ], [], 'all events are data: lines');
is($e[-1]{data}, '[DONE]', 'the last is [DONE]');
is(scalar grep({ ($_->{data} // '') eq '[DONE]' } @e), 1, 'once');
is($c->{in}, '', 'and nothing follows');
is_deeply([ grep { !check_utf8($_->{raw}) } @e ], [], 'each event is UTF-8');
my @c = data_events(@e);
my %one = map { join('|', @$_{qw(id object created model)}) => 1 } @c;
is(keys %one, 1, 'id, object, created and model are shared');
like($c[0]{id}, qr/^cmpl-./, 'id');
is($c[0]{object}, 'text_completion', 'object');
is($c[0]{model}, 'glm-demo-9m', 'model');
is_deeply([ grep { exists $_->{usage} } @c ], [], 'no usage unasked');
is_deeply([ grep { @{ $_->{choices} } != 1 } @c ], [], 'one choice a chunk');
is_deeply([ sort keys %{ $c[0]{choices}[0] } ], [ qw(finish_reason index logprobs stop_reason text) ],
    'keys of a choice');
is(join('', map { $_->{choices}[0]{text} } @c), 'Wo ist die Datei?', 'the text');
is_deeply([ map { $_->{choices}[0]{finish_reason} } @c[ 0 .. $#c - 1 ] ], [ (undef) x $#c ],
    'finish_reason is null until the last');
is($c[-1]{choices}[0]{finish_reason}, 'stop', 'and then it is told');
cmp_ok(scalar @c, '>=', 2, 'chunks on the way, not one at the end');      # a busy machine joins steps
$r = $t->post($URI, { @P }, client => $c);
is($r && $r->{status}, 200, 'the connection is usable after a stream');

# Usage

my @u = $t->stream(@P, stream_options => { include_usage => TRUE });
my $last = pop @u;
is_deeply($last->{choices}, [], 'the usage chunk has no choices');
is_deeply($last->{usage}, { prompt_tokens => 11, completion_tokens => 6, total_tokens => 17,
    prompt_tokens_details => { cached_tokens => 0 } }, 'the usage');
is_deeply([ map { exists $_->{usage} && !defined $_->{usage} ? 1 : 0 } @u ], [ (1) x @u ],
    'null in each chunk before');
is($last->{id}, $u[0]{id}, 'the usage chunk has the same id');
@u = $t->stream(@P, stream_options => { include_usage => FALSE });
ok(!exists $u[-1]{usage} && @{ $u[-1]{choices} }, 'include_usage false is not asked');
@u = $t->stream(@P, stream_options => {});
ok(!exists $u[-1]{usage}, 'nor is an empty object');

# Streamed = plain, whatever is asked

my %cases = (
    plain => {},
    length => { max_tokens => 3 },
    zero => { max_tokens => 0 },
    stop => { stop => ' die' },
    'stop across tokens' => { stop => [ 'st di' ] },
    'stop with itself' => { stop => [ 'st di' ], include_stop_str_in_output => TRUE },
    'stop that almost comes' => { stop => [ 'die Dateix', 'Datei!' ] },
    'stop at the first character' => { stop => [ 'W' ] },
    'stop at the end' => { stop => [ '?' ] },
    'stop of one that holds another' => { stop => [ 'st', 'ist die Datei' ] },
    'Chinese' => { prompt => 'English: new window Chinese:' },
    'a stop of Chinese' => { prompt => 'English: new window Chinese:', stop => [ "\x{7a97}" ] },
    'newlines' => { prompt => 'English: "Return True if the list is empty." Python:', max_tokens => 40 },
    'blanks at the end' => { prompt => 'English: "Return True if the list is empty." Python:', max_tokens => 10 },
    'emoji by hot sampling' => { temperature => 2, seed => 5, max_tokens => 200, ignore_eos => TRUE },
    'long' => { max_tokens => 500, ignore_eos => TRUE },
    'logprobs' => { logprobs => 2, max_tokens => 30, ignore_eos => TRUE },
    'logprobs and stop' => { logprobs => 0, stop => [ 'st di' ] },
    'ids' => { return_token_ids => TRUE, stop => [ 'st di' ] },
    'a blank' => { prompt => 'English: Where is the [MASK]? German: Wo ist die Datei?' },
    'unidirectional' => { mode => 'unidirectional', max_tokens => 20 },
);
for my $name (sort keys %cases) {
    my %body = (@P, %{ $cases{$name} });
    my $plain = $t->complete(%body);
    my $want = $plain->{choices}[0];
    my @s = $t->stream(%body, stream_options => { include_usage => TRUE });
    my $usage = pop @s;
    my %got = (index => 0, text => '', logprobs => undef);
    for (map { $_->{choices}[0] } @s) {
        $got{text} .= $_->{text};
        $got{$_->{index}} = 1 if $_->{index};
        for my $k (qw(finish_reason stop_reason)) {
            $got{$k} = $_->{$k};
        }
        if (my $l = $_->{logprobs}) {
            push @{ $got{logprobs}{$_} }, @{ $l->{$_} } for keys %$l;
        }
        push @{ $got{token_ids} }, @{ $_->{token_ids} } if $_->{token_ids};
        push @{ $got{prompt_token_ids} }, @{ $_->{prompt_token_ids} } if $_->{prompt_token_ids};
    }
    is_deeply(\%got, $want, "$name: streamed = plain") || diag(to_json([ \%got, $want ]));
    is_deeply($usage->{usage}, $plain->{usage}, "$name: same usage");
}

# A stop string is not shown in part before it is complete, and text is not held longer

@c = $t->stream(@P, stop => [ ' ist die Date' ]);
is(join('|', grep { length } map { $_->{choices}[0]{text} } @c), 'Wo', 'what could begin a stop is held back');

# Every event is UTF-8, also where characters are made of byte tokens

$c = $t->post($URI, { prompt => "\x{1f600}\x{1f601} \x{1f602}:", temperature => 1.8, seed => 11, max_tokens => 300,
    ignore_eos => TRUE, stream => TRUE }, start => 1);
$c->read_head;
@e = $c->events;
is_deeply([ grep { !check_utf8($_->{raw}) } @e ], [], 'byte tokens come as whole characters');
cmp_ok(scalar @e, '>', 50, 'in many events');

# A request refused is no stream

$r = $t->post($URI, { @P, stream => TRUE, model => 'x' });
check_error($r, 404, 'a refusal has a status, not an event', code => 'model_not_found');
$r = $t->post($URI, { prompt => 'file ' x 2000, stream => TRUE });
check_error($r, 400, 'also what only the engine can tell', code => 'context_length_exceeded');

# Many at once, each its own

my @many = map { $t->post($URI, { prompt => "number $_ of many:", temperature => 0, max_tokens => 60,
    ignore_eos => TRUE, stream => TRUE }, start => 1) } 1 .. 24;
my @text;
for my $c (@many) {
    $c->read_head;
    my %id;
    my @c = data_events($c->events);
    $id{ $_->{id} } = 1 for @c;
    push @text, join '', map { $_->{choices}[0]{text} } @c;
    $text[-1] .= ' (ids mixed)' if keys %id != 1;
}
is($text[ $_ - 1 ], $t->complete(prompt => "number $_ of many:", temperature => 0, max_tokens => 60,
    ignore_eos => TRUE)->{choices}[0]{text}, "stream $_ of 24 in the crowd is as alone") for 1, 2, 12, 23, 24;

# A slow reader gets every byte, and holds nobody up

my $slow = $t->post($URI, { @P, max_tokens => 900, ignore_eos => TRUE, logprobs => 20, stream => TRUE }, start => 1,
    rcvbuf => 4096);
$slow->read_head;
$slow->event;
my $begin = Time::HiRes::time();
is($t->complete(@P)->{choices}[0]{text}, 'Wo ist die Datei?', 'another stream beside a slow reader');
cmp_ok(Time::HiRes::time() - $begin, '<', 20, 'in time');
$t->idle(30, 'a slow reader holds no sequence and no page');
@c = data_events($slow->events(20));
is(scalar(map { @{ $_->{choices}[0]{logprobs}{tokens} } } grep { $_->{choices}[0]{logprobs} } @c), 900,
    'the slow reader gets all 900 tokens');

$t->idle(5, 'nothing is left');
$t->done;
