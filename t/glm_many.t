# A worker with very many clients: memory without a bound, a slow or half-open client that
# costs others, or an upgrade or a shutdown that loses streams or never ends.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test qw(:DEFAULT gone);
use GLM::HTTP2;
use Socket qw(IPPROTO_TCP);
use Time::HiRes qw(time);

plan skip_all => 'sanitized run' if $ENV{GLM_SANITIZED};

my $URI = '/v1/completions';
# Both ends of a connection are of this machine: fewer where a process may not open so many.
my ($FILES) = qx(sh -c 'ulimit -n') =~ /(\d+)/ ? $1 : 1_000_000;
my ($STREAMS, $IDLE) = (1000, $FILES > 13_000 ? 10_000 : 2500);
use constant TCP_QUICKACK => 12;

sub rss {
    my ($t, $pid) = @_;
    return $t->read_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m ? $1 : 0;
}
sub words { return { prompt => "fake: $_[0]", max_tokens => 20_000, stream => TRUE } }
sub text_of { return eval { join '', map { $_->{choices}[0]{text} // '' } data_events($_[0]->events) } // $@ }
sub text { return join '', map { 't' . (256 + $_ % 1000) . ' ' } 0 .. $_[0] - 1 }

my $t = GLM::Test->new(log_level => 'error', globals => 'worker_rlimit_nofile 13000;')->fake('--max-seq', 30_000);
$t->conf(servers => 'server { listen 127.0.0.1:%%H2%% http2; location / { glm_pass unix:%%SOCKET%%; } }',
    vars => { H2 => my $h2 = GLM::Test::port() });
$t->conf(text => $t->conf_text =~ s/worker_connections \d+/worker_connections 12000/r)->run->ready;
my ($worker) = $t->workers;

# Streams and idle connections: some kilobytes each, and given back

my $before = rss($t, $worker);
my @idle = map { $t->client } 1 .. $IDLE;
$_->send("POST $URI HTTP/1.1\r\nHost: a\r\nContent-") for @idle[ 0 .. 99 ];
ok($t->get('/health'), 'the worker has taken them');
my $idle = rss($t, $worker);
cmp_ok($idle - $before, '<', 4 * $IDLE, 'an idle connection costs less than 4 KB') || diag("$before, $idle");
my @c = map { $t->post($URI, words('tokens=30 delay=300'), start => 1) } 1 .. $STREAMS;
ok($t->wait_stat('num_requests_running', $STREAMS, 30), "$STREAMS streams run");
my $live = rss($t, $worker);
cmp_ok($live - $idle, '<', 32 * $STREAMS, 'a stream costs less than 32 KB') || diag("$idle, $live");
my $whole = 0;
for my $c (@c) {
    $c->read_head;
    $whole++ if text_of($c) eq text(30);
}
is($whole, $STREAMS, 'all of them are whole');
$_->close for @c, @idle;
@c = @idle = ();
$t->idle(5, 'nothing is left');

# An event does not wait until a client that is slow to acknowledge has done so

my $c;
my $reads;
ok((wait_for {
    ($c, $reads) = ($t->client, 0);
    $c->request('POST', $URI, body => to_json(words('tokens=40 delay=5')));
    until ($c->{in} =~ /\[DONE\]/) {
        setsockopt $c->{sock}, IPPROTO_TCP, TCP_QUICKACK, 0;
        $c->fill(time + 30) or last;
        $reads++;
    }
    $c->close;
    $reads > 20;      # a busy machine joins some
} 60), 'each event goes out as it is made') || diag($reads);

# A window of 0 in HTTP/2: nothing but the headers, and all of it when it opens

my $h = GLM::HTTP2->new(port => $h2, window => 0, grant => 0);
my $id = $h->request('POST', $URI, body => to_json(words('tokens=100')));
is($h->head($id)->{status}, 200, 'HTTP/2, a window of 0: headers');
$t->idle(5, 'the engine is not held up');
is(length $h->{streams}{$id}{body} // '', 0, 'no data');
for (1 .. 100) {
    last if $h->{streams}{$id}{end};
    $h->window($id, 1000);
    $h->until(sub { $h->{streams}{$id}{end} }, 0.05);
}
is(join('', map { $_->{choices}[0]{text} } data_events($h->events($id))), text(100), 'all of it when it opens');
$h->close;

# A reader that stops: its share of memory, then only itself

my $at = rss($t, $worker);
@c = map { $t->client(rcvbuf => 4096) } 1 .. 20;
$_->request('POST', $URI, body => to_json(words('tokens=15000 bytes=200'))) for @c;
$_->read_head for @c;
my $beside = $t->post($URI, words('tokens=50 delay=10'), start => 1);
$beside->read_head;
is(text_of($beside), text(50), 'a stream beside readers that stop');
ok((wait_for { my $now = rss($t, $worker); select undef, undef, undef, 0.5; rss($t, $worker) == $now } 10),
    'the worker holds no more after some time');
cmp_ok(rss($t, $worker) - $at, '<', 20 * 1024, 'under 1 MB a reader') || diag("$at, " . rss($t, $worker));
my $events = text_of($c[0]);
is(length $events, 15000 * 200, 'one that reads again gets all') || diag(substr $events, 0, 200);
$_->reset for @c;
@c = ();
$t->idle(10, 'nothing is left');

$t->finish;

# Binary upgrade with running streams.  nginx takes USR2 only when it is a daemon.

my $u = GLM::Test->new->fake('--max-seq', 30_000);
$u->conf(text => $u->conf_text =~ s/daemon off/daemon on/r);

sub pid { return $u->read_file("nginx.pid$_[0]") =~ /(\d+)/ ? $1 : 0 }

is(system($u->nginx_cmd($u->write_conf)), 0, 'a daemon starts');
my $old = wait_for { pid('') } 60;
$u->ready;
@c = map { $u->post($URI, words('tokens=150 delay=20'), start => 1) } 1 .. 10;
$_->read_head for @c;
kill 'USR2', $old;
my $new = wait_for { pid('.oldbin') && pid('') } 60;
ok($new && $new != $old, 'USR2: a new main process');
kill 'QUIT', $old;
is(scalar(grep { text_of($_) eq text(150) } @c), 10, 'ten streams of the old worker are whole');
$_->close for @c;
ok((wait_for { gone($old) } 60), 'and then it is gone');
is($u->post($URI, { prompt => 'fake: tokens=2' })->{status}, 200, 'the new one serves alone');
$u->idle(5, 'nothing is left');
kill 'QUIT', $new;
ok((wait_for { gone($new) } 60), 'and ends');
$u->finish;

# worker_shutdown_timeout

my $w = GLM::Test->new->fake('--max-seq', 30_000);
$w->conf(globals => 'worker_shutdown_timeout 1s;')->run->ready;
$c = $w->post($URI, words('tokens=3000 delay=20'), start => 1);
my $short = $w->post($URI, words('tokens=10 delay=20'), start => 1);
$c->read_head;
my @old = $w->workers;
my $begin = time;
ok($w->reload, 'reload');
$short->read_head;
is(text_of($short), text(10), 'worker_shutdown_timeout: a short stream ends as it should');
ok((wait_for { !grep { $_ == $old[0] } $w->workers } 50), 'a long one does not keep the worker');
my $s = time - $begin;
cmp_ok($s, '>', 0.9, 'not before 1 s');
cmp_ok($s, '<', 30, 'long before the stream would end') || diag($s);
ok($c->wait_eof(5), 'its client sees the end');
$w->idle(5, 'and the engine hears of it');

$t->done;
