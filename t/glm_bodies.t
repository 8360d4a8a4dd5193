# A request body that nginx keeps elsewhere than in one buffer: in a file, in chunks,
# arriving slowly, or together with the next request.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine;
$t->conf(http => 'client_body_buffer_size 1k; client_body_timeout 1s;', locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /file/ { client_body_in_file_only clean; glm_pass unix:%%SOCKET%%; }
        location /single/ { client_body_in_single_buffer on; client_body_buffer_size 256k;
            glm_pass unix:%%SOCKET%%; }
END

my $P = 'English: Where is the file? German:';
my $want = 'Wo ist die Datei?';
my $URI = '/v1/completions';
my $body = to_json({ prompt => $P, temperature => 0 });

sub text {
    my ($r) = @_;
    return 'no answer' unless $r;
    return $r->{status} == 200 ? json($r->{body})->{choices}[0]{text} : "$r->{status} $r->{body}";
}

# Sizes around the buffer, so that the body is in memory, in a file, or in both

for my $size (length $body, 1023, 1024, 1025, 4096, 8192, 70_000, 900_000) {
    my $padded = $body . ' ' x ($size - length $body);
    is(text($t->post($URI, $padded)), $want, "$size bytes");
    is(text($t->post("/file$URI", $padded)), $want, "$size bytes in a file");
    next if $size > 100_000;
    is(text($t->post("/single$URI", $padded)), $want, "$size bytes in one buffer");
    my $c = $t->client;
    my @pieces = unpack '(a999)*', $padded;
    $c->request('POST', $URI, chunked => \@pieces);
    is(text($c->response), $want, "$size bytes in " . @pieces . ' chunks');
}
my $long = to_json({ prompt => 'x' x 200_000 . $P, temperature => 0 });
check_error($t->post("$_$URI", $long), 400, 'a prompt of 200 KB ' . ($_ || '/'), param => 'prompt')
    for '', '/file', '/single';

# Multi-byte characters across pieces

my $umlaut = "\x{e4}\x{4f60}\x{1f600}" x 400;
my $r = $t->post('/tokenize', { prompt => $umlaut, add_special_tokens => FALSE });
my $ids = json($r->{body})->{tokens};
my $c = $t->client;
$c->request('POST', '/tokenize', chunked => [ split //, to_json({ prompt => $umlaut, add_special_tokens => FALSE }) ]);
is_deeply(json($c->response->{body})->{tokens}, $ids, 'one byte a chunk');

# Slowly

$c = $t->client;
my $bytes = GLM::HTTP::format('POST', $URI, body => $body);
for my $piece (unpack '(a25)*', $bytes) {
    $c->send($piece);
    select undef, undef, undef, 0.005;
}
is(text($c->response), $want, 'in pieces');

$c = $t->client;
$c->send(GLM::HTTP::format('POST', $URI, body => substr($body, 0, 10), length => length $body));
my $start = Time::HiRes::time();
ok($c->wait_eof(8), 'a body that does not come on ends by nginx\'s time-out');
cmp_ok(Time::HiRes::time() - $start, '>', 0.8, 'not before it');

$c = $t->client;
$c->send(GLM::HTTP::format('POST', $URI, body => substr($body, 0, 10), length => length $body));
$c->close;
$c = $t->client;
$c->send(GLM::HTTP::format('POST', $URI, body => substr($body, 0, 10), length => length $body));
$c->reset;
$t->idle(5, 'a client that leaves inside its body leaves nothing');

# Expect: 100-continue

$c = $t->client;
$c->send(GLM::HTTP::format('POST', $URI, length => length $body, headers => [ 'Expect', '100-continue' ]));
is(($c->read_head // {})->{status}, 100, '100 Continue');
$c->send($body);
is(text($c->response), $want, 'and then the body');

# Pipelining: answers in order, plain, streamed and refused

$c = $t->client;
my $stream = to_json({ prompt => $P, temperature => 0, stream => TRUE });
$c->send(join '', map { GLM::HTTP::format('POST', $URI, body => $_) } $body, $stream, '{', $body);
is(text($c->response), $want, 'pipelined: first');
$c->read_head;
is(join('', map { $_->{choices}[0]{text} } data_events($c->events)), $want, 'second, a stream');
check_error($c->response, 400, 'third, a refusal');
is(text($c->response), $want, 'fourth');

# HTTP/1.0, and a client that closes its side

$c = $t->client;
$c->request('POST', $URI, body => $body, http10 => 1);
is(text($c->response), $want, 'HTTP/1.0');
$c = $t->client;
$c->request('POST', $URI, body => $stream, http10 => 1);
$r = $c->read_head;
is($r->{mode}, 'eof', 'HTTP/1.0 stream ends with the connection');
is(join('', map { $_->{choices}[0]{text} } data_events($c->events)), $want, 'HTTP/1.0 stream');

# Many on one connection

$c = $t->client;
my %got;
$got{ text($t->post($URI, { prompt => $P, temperature => 0, max_tokens => 8 }, client => $c)) }++ for 1 .. 50;
is_deeply(\%got, { $want => 50 }, 'fifty on one connection');
my $lines = () = $t->read_file('access.log') =~ /POST .* 200 /g;
cmp_ok($lines, '>=', 80, 'all are in the access log');

$t->idle(5, 'nothing is left');
$t->done;
