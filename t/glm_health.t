# A step thread that stands still while /health says 200, or clients that wait on it for
# good; an engine that is stopped and goes on; and an engine that is still loading.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use Time::HiRes qw(time);

my $URI = '/v1/completions';
my $t = GLM::Test->new(absent => 1)->fake('--loading', 5000)->run;

$t->start_engine;
my $r;
wait_for { $r = $t->get('/health'); $r->{body} =~ /engine_loading/ } 1.2;
check_error($r, 503, 'loading: /health', code => 'engine_loading');
like($r->{headers}{'retry-after'} // 'absent', qr/^\d+$/, 'Retry-After');
check_error($t->post($URI, { prompt => 'a' }), 503, 'loading: a completion', code => 'engine_loading');
$t->ready(10);
is($t->post($URI, { prompt => 'fake: tokens=2' })->{status}, 200, 'ready by itself');

# Nothing queued: standing still is no illness.  Something queued: it is, after 10 s.

my $c = $t->post($URI, { prompt => 'fake: tokens=1000 delay=20', max_tokens => 1000, stream => TRUE }, start => 1);
$c->read_head;
$t->wait_stat('num_requests_running', 1, 5);
my $begin = time;
my $waiting = $t->post($URI, { prompt => 'fake: stall=16000 tokens=3' }, start => 1);
my $sick = wait_for { $t->get('/health')->{status} == 503 } 14;
my $s = time - $begin;
ok($sick, '/health turns red');
cmp_ok($s, '>', 9, 'not before 10 s') || diag($s);
cmp_ok($s, '<', 15.5, 'and not much later') || diag($s);
$begin = time;
check_error($t->post($URI, { prompt => 'fake: tokens=2' }), 503, 'a request that comes then', type => 'service_unavailable_error');
cmp_ok(time - $begin, '<', 5, 'is refused at once');
check_error($waiting->response(5), 503, 'and one that waits since before');
ok((wait_for { $t->get('/health')->{status} == 200 } 8), '/health turns green again');
is($t->post($URI, { prompt => 'fake: tokens=2' })->{status}, 200, 'and requests are served');
$c->close;
$t->idle(5, 'nothing is left');
$t->finish;

# SIGSTOP and SIGCONT: the streams go on where they were

my $real = GLM::Test->new->engine('--max-num-seqs', 4)->run->ready;
my %long = (temperature => 0, ignore_eos => TRUE, max_tokens => 900);
my @want = map { $real->complete(%long, prompt => "number $_:")->{choices}[0]{text} } 1 .. 6;
my @c = map { $real->post($URI, { %long, prompt => "number $_:", stream => TRUE }, start => 1) } 1 .. 6;
$_->read_head && $_->event for @c[ 0 .. 3 ];
my $engine = $real->{procs}{engine}{pid};
kill 'STOP', $engine;
$begin = time;
$sick = wait_for { $real->get('/health')->{status} == 503 } 14;
$s = time - $begin;
ok($sick, 'SIGSTOP: /health turns red');
cmp_ok($s, '<', 30, 'soon after 10 s') || diag($s);
$begin = time;
check_error($real->post($URI, { %long, prompt => 'a' }), 503, 'a request that comes then', code => 'engine_unavailable');
check_error($real->post('/tokenize', { prompt => 'a' }), 503, 'of any kind', code => 'engine_unavailable');
cmp_ok(time - $begin, '<', 5, 'is refused at once');
kill 'CONT', $engine;
ok((wait_for { $real->get('/health')->{status} == 200 } 5), 'SIGCONT: /health turns green again');
$_->read_head for @c[ 4, 5 ];
for my $i (0 .. $#c) {
    is(eval { join '', map { $_->{choices}[0]{text} } data_events($c[$i]->events) } // $@, $want[$i],
        "stream $i, " . ($i < 4 ? 'running' : 'queued') . ', goes on with the same bytes');
}
$real->idle(5, 'nothing is left');

$t->done;
