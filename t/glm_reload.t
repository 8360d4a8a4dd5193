# A reload that loses a stream, an old worker that stays, or an engine's restart that
# needs one.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/completions';
my %long = (temperature => 0, ignore_eos => TRUE, max_tokens => $ENV{GLM_SANITIZED} ? 60 : 300);

my $t = GLM::Test->new(workers => 2)->engine('--max-num-seqs', 4)->run->ready;

# Twenty streams, in three generations of workers

my $prompt = sub { return 'number ' . $_[0] % 4 . ':' };
my @c = map { $t->post($URI, { %long, prompt => $prompt->($_), stream => $_ % 5 ? TRUE : FALSE }, start => 1) } 1 .. 20;
ok($t->wait_stat('num_requests_running', 4, 5), 'streams run');
my @old = $t->workers;
ok($t->reload, 'reload in the middle of them');
ok((wait_for { $t->get('/health')->{status} == 200 } 10), 'new workers answer');
ok(scalar(grep { my $p = $_; grep { $_ == $p } @old } $t->workers), 'an old worker is still at it');
ok($t->reload, 'and another reload');
is($t->complete(prompt => 'English: Save the file German:', temperature => 0)->{choices}[0]{text}, 'Datei speichern',
    'a request in between');
my %want;
for my $i (1 .. 20) {
    my $c = $c[ $i - 1 ];
    my $text;
    if ($i % 5) {
        $c->read_head;
        my @chunks = eval { data_events($c->events) };
        $text = $@ || join '', map { $_->{error} ? 'error' : $_->{choices}[0]{text} } @chunks;
    } else {
        my $r = $c->response;
        $text = $r ? json($r->{body})->{choices}[0]{text} : 'nothing';
    }
    my $p = $prompt->($i);
    is($text, $want{$p} //= $t->complete(%long, prompt => $p)->{choices}[0]{text}, "stream $i lost nothing");
}
$_->close for @c;
my %is_old = map { $_ => 1 } @old;
ok((wait_for { !grep { $is_old{$_} } $t->workers } 10), 'the old workers are gone');
is(scalar $t->workers, 2, 'two workers are there') || diag(join ' ', $t->workers);
$t->idle(5, 'nothing is left');

# Clients that leave old workers

@c = map { $t->post($URI, { %long, prompt => "number $_:", stream => TRUE }, start => 1) } 1 .. 8;
$_->read_head for @c[ 0 .. 3 ];
@old = $t->workers;
ok($t->reload, 'reload');
$_->close for @c;
$t->idle(5, 'clients of old workers that leave free their sequences');
%is_old = map { $_ => 1 } @old;
ok((wait_for { !grep { $is_old{$_} } $t->workers } 10), 'and let the workers go');

# Reloads without requests leave no connection at the engine

my $clients = sub { scalar grep { /\Q$t->{socket}\E$/ } split /\n/, do { open my $f, '<', '/proc/net/unix'; local $/; <$f> } };
my $before = $clients->();
for my $i (1 .. 5) {
    ok($t->reload, "idle reload $i");
    ok((wait_for { $t->workers == 2 } 10), "two workers after reload $i");
}
$t->ready;
ok((wait_for { $clients->() <= $before } 10), 'old workers leave the engine') || diag($before . ' ' . $clients->());

# A reload to another engine's socket

my $socket = $t->{socket};
$t->conf(locations => <<'END');
        location / { glm_pass unix:%%DIR%%/none.sock; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
END
my $c = $t->post($URI, { %long, prompt => 'a', stream => TRUE }, start => 1);
$c->read_head;
ok($t->reload, 'reload to another engine');
ok((wait_for { $t->get('/health')->{status} == 503 } 5), 'which is not there');
my @chunks = data_events($c->events);
is($chunks[-1]{choices}[0]{finish_reason}, 'length', 'the stream of the old one ends as it should');
$t->conf(locations => undef);
ok($t->reload, 'and back');
$t->ready;

# A quit waits for streams, too

$c = $t->post($URI, { %long, prompt => 'q', stream => TRUE }, start => 1);
$c->read_head;
kill 'QUIT', $t->master;
@chunks = eval { data_events($c->events) };
is($@ || $chunks[-1]{choices}[0]{finish_reason}, 'length', 'QUIT lets a stream end');
$c->close;
ok($t->reap('nginx', 10), 'and then ends nginx');

$t->done;
