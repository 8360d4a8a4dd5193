# HTTP/2: an answer or a stream that comes out differently, stops other streams of the
# connection, or does not respect the client's window.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use GLM::HTTP2;

my $t = GLM::Test->new->engine('--max-num-seqs', 8);
$t->conf(listen => 'http2', log_level => 'info');
$t->conf(servers => <<'END', vars => { PLAIN => $t->{plain} = GLM::Test::port() });
    server { listen 127.0.0.1:%%PLAIN%%;
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; } }
END
# the harness asks over HTTP/1.1, on the second server
($t->{h2}, $t->{port}) = ($t->{port}, $t->{plain});
$t->conf(vars => { PORT => $t->{h2}, PLAIN => $t->{plain} });
$t->run->ready;

my $P = 'English: Where is the file? German:';
my @P = (prompt => $P, temperature => 0);
my $URI = '/v1/completions';
my $h = GLM::HTTP2->new(port => $t->{h2});
sub ask { my %b = @_; return $h->request('POST', $URI, body => to_json(\%b), headers => [ 'content-type', 'application/json' ]) }

# Plain

my $id = ask(@P);
my $r = $h->response($id);
is($r->{status}, 200, 'a completion');
is($r->{headers}{'content-type'}, 'application/json', 'content type');
ok($r->{headers}{'x-request-id'}, 'x-request-id');
ok(!exists $r->{headers}{connection} && !exists $r->{headers}{'transfer-encoding'}, 'no HTTP/1.1 headers');
is(json($r->{body})->{choices}[0]{text}, 'Wo ist die Datei?', 'its text');
$r = $h->response(ask(@P, temperature => 5));
check_error($r, 400, 'an error', param => 'temperature');
$r = $h->response($h->request('GET', '/v1/models'));
is(json($r->{body})->{data}[0]{id}, 'glm-demo-9m', 'GET /v1/models');
$r = $h->response($h->request('POST', $URI, body => to_json({ @P }), no_length => 1));
is($r->{status}, 200, 'without content-length');
$r = $h->response($h->request('GET', '/nowhere'));
check_error($r, 404, 'an unknown path');
$r = $h->response($h->request('HEAD', '/v1/models'));
is("$r->{status} $r->{body}", '200 ', 'HEAD');

# A body in many frames, and one over the limit

my $body = to_json({ @P, user => 'x' x 50000 });
$id = $h->request('POST', $URI, open => 1, headers => [ 'content-length', length $body ]);
$h->data($id, $_, 0) for unpack '(a700)*', substr $body, 0, -10;
$h->data($id, substr($body, -10), 1);
is(json($h->response($id)->{body})->{choices}[0]{text}, 'Wo ist die Datei?', 'a body in 70 frames');
$id = $h->request('POST', $URI, open => 1, headers => [ 'content-length', 2000000 ]);
check_error($h->response($id), 413, 'a body over client_max_body_size', code => 'request_too_large');
$h->rst($id);

# Stream

$id = ask(@P, stream => TRUE, stream_options => { include_usage => TRUE });
$r = $h->head($id);
is($r->{headers}{'content-type'}, 'text/event-stream; charset=utf-8', 'stream: content type');
is($r->{headers}{'x-accel-buffering'}, 'no', 'stream: X-Accel-Buffering');
my @c = data_events($h->events($id));
is((pop @c)->{usage}{completion_tokens}, 6, 'stream: usage');
is(join('', map { $_->{choices}[0]{text} } @c), 'Wo ist die Datei?', 'stream: text');
ok($h->{streams}{$id}{end}, 'stream: END_STREAM');

# Twenty streams of one connection, each its own

my %want;
my @ids = map { ask(prompt => "number $_ of many:", temperature => 0, max_tokens => 40, ignore_eos => TRUE, stream => TRUE) } 1 .. 20;
for my $i (0 .. $#ids) {
    my @c = data_events($h->events($ids[$i]));
    my $got = join '', map { $_->{choices}[0]{text} } @c;
    my $want = $t->complete(prompt => 'number ' . ($i + 1) . ' of many:', temperature => 0, max_tokens => 40, ignore_eos => TRUE);
    is($got, $want->{choices}[0]{text}, "stream $i of 20") if $i % 4 == 0 || $got ne $want->{choices}[0]{text};
}

# RST_STREAM of one stream frees it and leaves the others alone

my $gone = ask(prompt => 'a', max_tokens => 950, ignore_eos => TRUE, stream => TRUE);
my $stay = ask(@P, max_tokens => 300, ignore_eos => TRUE, stream => TRUE);
ok($h->event($gone), 'the first event of one');
$h->rst($gone, 8);
@c = data_events($h->events($stay));
is($c[-1]{choices}[0]{finish_reason}, 'length', 'the other ends as it should');
$t->idle(5, 'RST_STREAM frees its sequence');

# A client without window: the stream waits, the engine does not, and nothing is lost

my $w = GLM::HTTP2->new(port => $t->{h2}, window => 300, grant => 0);
$id = $w->request('POST', $URI, body => to_json({ @P, stream => TRUE, max_tokens => 200, ignore_eos => TRUE }));
$w->head($id);
$w->until(sub { length $w->{streams}{$id}{body} >= 300 }, 5);
is(length $w->{streams}{$id}{body}, 300, 'a window of 300 bytes is used up');
$t->idle(30, 'its sequence ends all the same');
is(length $w->{streams}{$id}{body}, 300, 'and is not exceeded');
while (!$w->{streams}{$id}{end}) {
    my $have = length $w->{streams}{$id}{body};
    $w->window($id, 7000);
    $w->window(0, 7000);
    last unless $w->until(sub { length $w->{streams}{$id}{body} > $have || $w->{streams}{$id}{end} }, 5);
}
@c = data_events($w->events($id));
is(join('', map { $_->{choices}[0]{text} } @c),
    $t->complete(@P, max_tokens => 200, ignore_eos => TRUE)->{choices}[0]{text}, 'it gets all of its text');

# A connection closed with streams on it

my $z = GLM::HTTP2->new(port => $t->{h2});
$z->request('POST', $URI, body => to_json({ prompt => "z $_", stream => TRUE, max_tokens => 950, ignore_eos => TRUE })) for 1 .. 12;
$z->event(1);
$z->close;
$t->idle(5, 'a closed connection frees all of its streams');
is(json($h->response(ask(@P))->{body})->{choices}[0]{text}, 'Wo ist die Datei?', 'the first connection still works');

$t->done;
