# What every other file stands on: a client that misreads, or a harness that
# overlooks an alert, would turn their checks into nothing.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use GLM::HTTP2;

# HPACK, RFC 7541 appendix C

my $h = GLM::HPACK->new;
my $show = sub { join '|', map { "$_->[0]=$_->[1]" } $h->decode(pack 'H*', $_[0]) };
is($show->('828684418cf1e3c2e5f23a6ba0ab90f4ff'),
    ':method=GET|:scheme=http|:path=/|:authority=www.example.com', 'C.4.1');
is($show->('828684be5886a8eb10649cbf'),
    ':method=GET|:scheme=http|:path=/|:authority=www.example.com|cache-control=no-cache', 'C.4.2');
$h = GLM::HPACK->new;
$h->{max} = 256;
is($show->('488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3'),
    ':status=302|cache-control=private|date=Mon, 21 Oct 2013 20:13:21 GMT|location=https://www.example.com',
    'C.6.1');
is($show->('4883640effc1c0bf'),
    ':status=307|cache-control=private|date=Mon, 21 Oct 2013 20:13:21 GMT|location=https://www.example.com',
    'C.6.2, with eviction');
ok(!eval { $show->('ff80'); 1 }, 'an index outside the tables dies');

# Against nginx alone

my $t = GLM::Test->new(no_module => 1, workers => 1, locations => <<'END');
        location = /a { return 200 "plain\n"; }
        location = /big { add_header X-A 1; add_header X-A 2; return 200 "%%BIG%%"; }
        location = /sse { default_type text/event-stream;
            return 200 "data: {\"n\":1}\n\n: ping\n\nevent: x\ndata: 2\n\ndata: [DONE]\n\n"; }
        location = /echo { client_max_body_size 100k; return 200 "$request_method $content_length"; }
        location = /error { default_type application/json; add_header X-Request-Id 1 always;
            return 400 '{"error":{"message":"no n","type":"invalid_request_error","param":"n","code":null}}'; }
END
$t->conf(vars => { BIG => 'x' x 3000 }, servers => <<"END");
    server { listen 127.0.0.1:@{[ $t->{h2} = GLM::Test::port() ]} http2;
        location = /a { return 200 "two\\n"; }
        location = /big { return 200 "%%BIG%%"; }
    }
END
$t->run;

is($t->get('/a')->{body}, "plain\n", 'one answer');
is(($t->workers)[0] // 0, ($t->workers)[-1] // 1, 'one worker');

my $c = $t->client;
$c->send(GLM::HTTP::format('GET', '/a') . GLM::HTTP::format('GET', '/big') . GLM::HTTP::format('GET', '/a'));
is_deeply([ map { $c->response->{body} } 1 .. 3 ], [ "plain\n", 'x' x 3000, "plain\n" ], 'pipelining');
my $bytes = GLM::HTTP::format('GET', '/big', headers => [ Connection => 'close' ]);
$c->send($_) for split //, $bytes;
my $r = $c->response;
is(length $r->{body}, 3000, 'a request in single bytes');
is($r->{headers}{'x-a'}, '1, 2', 'repeated header lines');
ok($c->wait_eof(5), 'end of the connection is seen');

$c = $t->client;
$c->request('GET', '/sse', headers => [ Connection => 'close' ]);
$c->read_head;
my @e = $c->events;
is(scalar @e, 4, 'four events');
is($e[0]{data}, '{"n":1}', 'data');
is($e[1]{comment}, 'ping', 'comment');
ok(defined $e[2]{bad}, 'an event: line is bad');
ok(!eval { data_events(@e); 1 }, 'a bad event dies');
is_deeply([ data_events(@e[ 0, 1, 3 ]) ], [ { n => 1 } ], 'decoded events');
ok(!eval { data_events(@e[ 0, 1 ]); 1 }, 'a stream without [DONE] dies');

is($t->post('/echo', 'a' x 50000)->{body}, 'POST 50000', 'a body');
$c = $t->client;
$c->request('POST', '/echo', chunked => [ 'abc', 'defg' ]);
is($c->response->{status}, 200, 'a chunked body');
check_error($t->get('/error'), 400, 'an error', param => 'n', code => undef);
like(GLM::Test::error_fault('{"error":{"message":"' . 'm' x 2000
        . '","type":"x","param":null,"code":null}}'), qr/2000 bytes/, 'a long message is seen');
like(GLM::Test::error_fault('{"error":{"message":"m","type":"x","param":null}}'), qr/keys/,
    'a missing key is seen');
like(GLM::Test::error_fault('{"error":{"message":"m","type":"x","param":"a","code":null}}',
        param => 'b'), qr/param is a, not b/, 'another param is seen');

my $h2 = GLM::HTTP2->new(port => $t->{h2});
my @id = map { $h2->request('GET', $_) } '/a', '/big', '/none', '/a';
is_deeply([ map { $h2->response($_)->{status} } @id ], [ 200, 200, 404, 200 ], 'HTTP/2 streams');
is($h2->{streams}{ $id[3] }{body}, "two\n", 'HTTP/2 body');
is(length $h2->{streams}{ $id[1] }{body}, 3000, 'HTTP/2 long body');
like($h2->{streams}{ $id[0] }{headers}{server}, qr/nginx/, 'HTTP/2 headers');
$h2->close;

ok($t->reload, 'reload');
is($t->get('/a')->{status}, 200, 'an answer after it');

# A harness that overlooks an alert

my $bad = GLM::Test->new(no_module => 1, locations => 'location / { return 204; }')->run;
open my $log, '>>', "$bad->{dir}/error.log";
print $log "2026/01/01 00:00:00 [alert] 1#1: made up\n";
close $log;
open $log, '>', "$bad->{dir}/engine.err";
print $log "x.c:1:2: runtime error: made up\n";
close $log;
$bad->stop_all;
my @faults = $bad->faults;
is(scalar grep({ /made up/ } @faults), 2, 'alert and sanitizer lines are found');
is(scalar @faults, 2, 'and nothing else');
$bad->allow(qr/made up/);
is(scalar(@faults = $bad->faults), 0, 'unless allowed');
$bad->spawn('sleeper', {}, $^X, '-e',
    '$SIG{TERM} = "IGNORE"; $| = 1; print "up\n"; select undef, undef, undef, 60');
wait_for { $bad->read_file('sleeper.out') };
ok(!$bad->stop('sleeper', 'TERM', 0.3), 'a process that does not stop');
is(scalar(my @f = $bad->faults), 1, 'is a fault');
$bad->{faults} = [];

$t->done;
