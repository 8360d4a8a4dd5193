# nginx's own modules around glm_pass: a limit, a check or a filter that breaks a stream,
# hides a refusal, or leaves a request behind.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use IO::Uncompress::Gunzip qw(gunzip);
use Time::HiRes qw(time);

my $URI = '/v1/completions';
my @VARS = qw(glm_request_id status glm_model glm_prompt_tokens glm_completion_tokens
    glm_finish_reason glm_queue_time glm_ttft glm_tpot glm_engine);
my $t = GLM::Test->new->fake('--slots', 50);
$t->conf(http => <<"HTTP", vars => { FRONT => my $front = GLM::Test::port() }, locations => <<'END', servers => <<'SERVERS');
    limit_req_zone \$uri zone=req:1m rate=1r/m;
    limit_conn_zone \$uri zone=conn:1m;
    log_format glm '@{[ join '|', map { "\$$_" } @VARS ]}';
    access_log "%%DIR%%/glm.log" glm;
HTTP
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /req/ { limit_req zone=req; limit_req_status 429; glm_pass unix:%%SOCKET%%; }
        location /conn/ { limit_conn conn 1; limit_conn_status 429; glm_pass unix:%%SOCKET%%; }
        location /auth/ { auth_request /check; glm_pass unix:%%SOCKET%%; }
        location = /check { internal; if ($http_authorization = "Bearer good") { return 204; } return 401; }
        location /healthy/ { auth_request /health; glm_pass unix:%%SOCKET%%; }
        location /page/ { error_page 400 = /own; glm_pass unix:%%SOCKET%%; }
        location = /own { return 200 "my page\n"; }
        location /gzip/ { gzip on; gzip_min_length 1; gzip_types application/json; glm_pass unix:%%SOCKET%%; }
        location /rate/ { limit_rate 2k; glm_pass unix:%%SOCKET%%; }
END
    server { listen 127.0.0.1:%%FRONT%%;
        location / { proxy_pass http://127.0.0.1:%%PORT%%; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering on; } }
SERVERS
$t->run->ready;

my $text = join '', map { "t$_ " } 256 .. 265;
sub ask { return { prompt => "fake: tokens=10 $_[0]", max_tokens => 10, $_[1] ? (stream => TRUE) : () } }
sub text_of { return join '', map { $_->{choices}[0]{text} } data_events($_[0]->events) }

# Limits: 429 in JSON, and the place is free again

is($t->post("/req$URI", ask(''))->{status}, 200, 'limit_req: the first passes');
check_error($t->post("/req$URI", ask('', 1)), 429, 'limit_req: the next is refused', code => 'rate_limit_exceeded');
my $c = $t->post("/conn$URI", ask('delay=200', 1), start => 1);
$c->read_head;
check_error($t->post("/conn$URI", ask('')), 429, 'limit_conn counts a stream', type => 'rate_limit_error');
is(text_of($c), $text, 'which is whole');
$c->close;
ok((wait_for { $t->post("/conn$URI", ask(''))->{status} == 200 } 5), 'limit_conn: the place is free again');

# auth_request: for plain answers and streams; also with the module in the sub-request

for my $stream (0, 1) {
    check_error($t->post("/auth$URI", ask('', $stream)), 401, 'auth_request refuses');
    my $r = $t->post("/auth$URI", ask('', $stream), headers => [ 'Authorization', 'Bearer good' ]);
    is($r->{status}, 200, 'auth_request lets pass');
    is(join('', $r->{body} =~ /"text":"([^"]*)"/g), $text, 'the whole answer');
    $r = $t->post("/healthy$URI", ask('', $stream));
    is($r->{status}, 200, 'a sub-request to /health');
    is(join('', $r->{body} =~ /"text":"([^"]*)"/g), $text, 'does not show in the answer');
}

# error_page is for pages of nginx: the module's refusals stay what they are

check_error($t->post("/page$URI", '{'), 400, 'error_page');

# gzip

my $r = $t->post("/gzip$URI", ask(''), headers => [ 'Accept-Encoding', 'gzip' ]);
is($r->{headers}{'content-encoding'}, 'gzip', 'gzip: a plain answer is packed');
gunzip(\$r->{body}, \my $unpacked);
is(json($unpacked)->{choices}[0]{text}, $text, 'and whole');
$c = $t->post("/gzip$URI", ask('delay=20', 1), headers => [ 'Accept-Encoding', 'gzip' ], start => 1);
is($c->read_head->{headers}{'content-encoding'}, undef, 'a stream is not');
is(text_of($c), $text, 'and whole');
$c->close;

# limit_rate: slower, and whole

my $begin = time;
$c = $t->post("/rate$URI", { prompt => 'fake: tokens=30 delay=1', max_tokens => 30, stream => TRUE }, start => 1);
$c->read_head;
is(text_of($c), join('', map { "t$_ " } 256 .. 285), 'limit_rate: a stream is whole');
cmp_ok(time - $begin, '>', 1, 'and slow');
$c->close;

# Behind a proxy that buffers: events come one at a time, and a client that leaves is gone

$c = GLM::HTTP->new(port => $front, timeout => 30);
$t->post($URI, ask('delay=100', 1), start => 1, client => $c);
$c->read_head;
my @at;
while (my $e = $c->event) {
    push @at, $e->{at};
}
is(join('', map { $_->{choices}[0]{text} } data_events(@{ $c->{events} })), $text, 'proxy_pass: a stream is whole');
cmp_ok($at[-1] - $at[0], '>', 0.5, 'proxy_pass: its events come as they are made');
$c->close;
$c = GLM::HTTP->new(port => $front, timeout => 30);
is(json($t->post($URI, ask(''), client => $c)->{body})->{choices}[0]{text}, $text, 'proxy_pass: a plain answer');
check_error($t->post($URI, '{', client => $c), 400, 'proxy_pass: a refusal');
$t->post($URI, { prompt => 'fake: tokens=1000 delay=20', max_tokens => 1000, stream => TRUE }, start => 1, client => $c);
$c->read_head;
$c->event;
$c->close;
$t->idle(5, 'proxy_pass: a client that leaves the proxy is gone here, too');

# The access log, also at a cancel

my %want = (plain => [ 'length', 10 ], stream => [ 'length', 10 ], cancel => [ 'abort', undef ]);
for my $kind (sort keys %want) {
    my ($reason, $tokens) = @{ $want{$kind} };
    my $words = $kind eq 'cancel' ? 'fake: tokens=900 delay=10' : 'fake: tokens=10 delay=5';
    my $c = $t->post($URI, { prompt => $words, max_tokens => $tokens // 900, $kind eq 'plain' ? () : (stream => TRUE) },
        start => 1, headers => [ 'X-Request-Id', $kind ]);
    $c->read_head;
    if ($kind eq 'cancel') {
        $c->event for 1 .. 5;
        $c->close;
    } else {
        $c->read_some until $c->{done};
    }
    my ($line) = wait_for { my ($l) = $t->read_file('glm.log') =~ /^(\Q$kind\E\|.*)$/m; $l } 5;
    my %l;
    @l{@VARS} = split /\|/, $line // '', -1;
    is_deeply([ @l{qw(status glm_model glm_finish_reason)} ], [ 200, 'fake-model', $reason ], "log: $kind")
        || diag($line);
    cmp_ok($l{glm_prompt_tokens}, '>=', length $words, "log: $kind: prompt");
    cmp_ok($l{glm_completion_tokens}, $tokens ? '==' : '>=', $tokens // 5, "log: $kind: tokens");
    like($l{glm_ttft}, qr/^\d+\.\d+$/, "log: $kind: time to the first token");
}

$t->idle(5, 'nothing is left');
$t->done;
