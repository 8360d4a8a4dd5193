# A refusal for load, from nginx or from the engine, that clients cannot read, or that
# takes accepted requests along.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/completions';
my $P = 'English: Where is the file? German:';
my $t = GLM::Test->new->engine('--max-num-seqs', 2, '--max-queue', 4);
$t->conf(http => <<'END', locations => <<'END')->run->ready;
    limit_req_zone $uri zone=req:1m rate=1r/m;
    limit_conn_zone $uri zone=conn:1m;
END
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /req/ { limit_req zone=req; limit_req_status 429; glm_pass unix:%%SOCKET%%; }
        location /req503/ { limit_req zone=req; glm_pass unix:%%SOCKET%%; }
        location /conn/ { limit_conn conn 1; limit_conn_status 429; glm_pass unix:%%SOCKET%%; }
        location /auth/ { auth_basic glm; auth_basic_user_file "%%DIR%%/none"; glm_pass unix:%%SOCKET%%; }
        location /deny/ { deny all; glm_pass unix:%%SOCKET%%; }
        location /page/ { deny all; error_page 403 = /own; glm_pass unix:%%SOCKET%%; }
        location = /own { return 403 "my page\n"; }
END
my %ask = (prompt => $P, temperature => 0);
my %long = (%ask, ignore_eos => TRUE, max_tokens => 300);

# nginx's own refusals are JSON, with its own status

is($t->post("/req$URI", \%ask)->{status}, 200, 'limit_req: the first passes');
check_error($t->post("/req$URI", \%ask), 429, 'limit_req_status 429', type => 'rate_limit_error',
    code => 'rate_limit_exceeded');
is($t->post("/req503$URI", \%ask)->{status}, 200, 'limit_req: the first passes');
my $r = $t->post("/req503$URI", \%ask);
check_error($r, 503, 'limit_req with its default status', type => 'service_unavailable_error');
my $c = $t->post("/conn$URI", { %long, stream => TRUE }, start => 1);
$c->read_head;
check_error($t->post("/conn$URI", \%ask), 429, 'limit_conn', type => 'rate_limit_error');
$c->close;
ok((wait_for { $t->post("/conn$URI", \%ask)->{status} == 200 } 5), 'the place is free when the client has left');
check_error($t->get("/deny$URI"), 403, 'deny', type => 'request_forbidden');
$r = $t->get("/auth$URI");
check_error($r, 401, 'auth_basic', type => 'invalid_request_error');
like($r->{headers}{'www-authenticate'} // 'absent', qr/Basic/, 'with its own header');
is($t->get("/page$URI")->{body}, "my page\n", 'error_page of the configuration wins');
$t->allow(qr/none" failed/);

# The engine's queue: what fits is served, the rest is told when to come back

my @c = map { $t->post($URI, { %long, prompt => "$P $_" }, start => 1) } 1 .. 16;
my (%status, @refused, @served);
for my $c (@c) {
    my $r = $c->response or next;
    $status{ $r->{status} }++;
    push @{ $r->{status} == 200 ? \@served : \@refused }, $r;
}
is(($status{200} // 0) + ($status{503} // 0), 16, 'each is served or refused') || diag(to_json(\%status));
cmp_ok($status{200} // 0, '>=', 6, 'rows and queue are used');
cmp_ok($status{503} // 0, '>=', 4, 'the rest is refused');
check_error($_, 503, 'a refusal', type => 'service_unavailable_error', code => 'server_is_overloaded')
    for @refused[ 0, -1 ];
is(scalar grep({ ($_->{headers}{'retry-after'} // '') =~ /^[1-9]\d*$/ } @refused), scalar @refused, 'with Retry-After');
is(scalar grep({ json($_->{body})->{usage}{completion_tokens} == 300 } @served), scalar @served,
    'what was accepted is whole');
$t->idle(5, 'nothing is left');
is($t->complete(%ask)->{choices}[0]{text}, 'Wo ist die Datei?', 'and there is room again');

$t->done;
