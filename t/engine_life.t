#!/usr/bin/perl
# Two engines on one socket, a socket that no engine can take over, or streams
# cut by a SIGTERM.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Engine;
use IO::Socket::UNIX;
use Socket qw(SOCK_SEQPACKET);
use Test::More;

my $B = build_dir();
my ($fake, $glm) = ("$B/t/fake_engine", "$B/glm");
plan skip_all => 'not built' unless -x $fake && -x $glm;

my $path = scratch('e.sock');

sub engine { return start($fake, '--socket', $path, @_) }
sub serving { my $e = engine(@_); $e->says(qr/serving/, 10) or die $e->err; return $e }
sub ask { my ($words, @o) = @_; return start($glm, 'complete', '--socket', $path, @o, "fake: $words") }
sub gone { return !-e $path && !-e "$path.lock" }

# ---- lock and socket ----

my $e = serving('--socket-mode', '0640');
ok(-S $path && -e "$path.lock", 'socket and lock file');
is(sprintf('%o', (stat $path)[2] & 0777), '640', 'the mode asked for');
my ($status, $out, $err) = run([ $fake, '--socket', $path ]);
is($status, 1, 'a second engine ends');
like($err, qr/already running/, 'and says why');
is(($err =~ tr/\n//), 1, 'in one line');
is((run([ $glm, 'complete', '--socket', $path, 'fake: tokens=1' ]))[0], 0, 'the first one still serves');

unlink "$path.lock";
($status, $out, $err) = run([ $fake, '--socket', $path ]);
like($err, qr/already running/, 'the same with its lock file deleted');
is($status, 1, 'exit status');
is($e->stop('INT', 10), 0, 'SIGINT ends it');

$e = serving();
is($e->stop('KILL'), 'signal 9', 'an engine is killed');
ok(-S $path, 'its socket stays behind');
$e = serving();
pass('the next one takes it over');
is($e->stop('TERM', 10), 0, 'SIGTERM, idle');
ok(gone(), 'nothing stays behind');

open my $f, '>', $path or die;
close $f;
($status, $out, $err) = run([ $fake, '--socket', $path ]);
ok($status eq '1' && $err =~ /no socket/ && -f $path, 'a plain file in its place is left alone');
unlink $path;

# Twenty at once: one wins.
my @all = map { engine() } 1 .. 20;
wait_for { (grep { $_->alive } @all) <= 1 } 20;
my @won = grep { $_->alive } @all;
is(scalar @won, 1, 'of twenty that start at once, one serves');
is(scalar(grep { !$_->alive && $_->err =~ /already running/ } @all), 19, 'and the others say so');
is($won[0]->stop('TERM', 10), 0, 'it ends');
ok(gone(), 'nothing stays behind');

# ---- paths ----

my $long = scratch('x' x 107);
($status, $out, $err) = run([ $fake, '--socket', $long ]);
ok($status eq '2' && $err =~ /\b107\b/, 'a path above 107 bytes: the limit is named');
($status, $out, $err) = run([ $fake, '--socket', '/nonexistent/e.sock' ]);
ok($status eq '1' && $err =~ m{/nonexistent/e.sock.lock}, 'a directory that is not there');
($status, $out, $err) = run([ $fake, '--socket', $path, '--socket-group', 'no such group' ]);
ok($status eq '1' && $err =~ /no such group/ && gone(), 'a group that is not there');

# ---- loading ----

$e = engine('--loading', 700);
ok((wait_for { -S $path } 10), 'it listens before it has loaded');
($status, $out, $err) = run([ $glm, 'complete', '--socket', $path, 'x' ]);
ok($status eq '1' && $err =~ /loading/, 'a client is told: loading');
ok($e->says(qr/serving/, 10), 'then it serves');
is((run([ $glm, 'complete', '--socket', $path, 'fake: tokens=1' ]))[0], 0, 'a client too');
is($e->stop('TERM', 10), 0, 'it ends');
for my $signal (qw(TERM INT)) {
    $e = engine('--loading', 60000);
    wait_for { -S $path } 10;
    is($e->stop($signal, 5), 0, "SIG$signal while it loads ends it at once");
    ok(gone(), 'nothing stays behind');
}

# ---- drain ----

$e = serving();
my $c = ask('tokens=60 delay=20');
ok((wait_for { length $c->out > 20 } 10), 'a stream runs');
$e->kill('TERM');
ok($e->says(qr/draining/, 5), 'SIGTERM: draining');
($status, $out, $err) = run([ $glm, 'complete', '--socket', $path, 'fake: tokens=1' ]);
ok($status eq '1' && $err =~ /shutting down/, 'a newcomer is refused');
is($c->ended(20), 0, 'the stream ends well');
is(join(' ', map { "t$_" } 256 .. 315) . " \n", $c->out, 'with all of its text');
is($e->ended(10), 0, 'then the engine');
ok(gone() && $e->clean, 'nothing stays behind');

for my $second (qw(TERM INT)) {
    $e = serving();
    $c = ask('hang');
    my $d = ask('tokens=10000 delay=20', '--max-tokens', 1500);
    ok((wait_for { length $d->out > 20 } 10), 'a stream and a request that never ends');
    $e->kill('TERM');
    $e->says(qr/draining/, 5);
    ok($e->alive, 'SIGTERM: it waits for them');
    is($e->stop($second, 10), 0, "SIG$second: it ends at once");
    ok($c->ended(5) && $c->err =~ /503/ && $d->ended(5) && $d->err =~ /503/, 'with errors to both');
    ok(gone() && $e->clean, 'nothing stays behind');
}

# A reader that has stopped reading does not keep it for good.
$e = serving('--pause-timeout', 1);
$c = start($glm, 'complete', '--socket', $path, '--max-tokens', 1500, 'fake: tokens=1500 bytes=4000');
wait_for { length $c->out > 1000 } 10;
$c->kill('STOP');
$e->kill('TERM');
is($e->ended(20), 0, 'draining ends although a client stands still');
$c->kill('CONT');
$c->stop('KILL');

# ---- SIGPIPE, SIGHUP ----

$e = serving();
$e->kill($_) for qw(PIPE HUP);
for (1 .. 20) {
    $c = ask('tokens=1000 delay=1', '--max-tokens', 1000);
    wait_for { length $c->out } 10;
    $c->stop('KILL');
}
is((run([ $glm, 'complete', '--socket', $path, 'fake: tokens=1' ]))[0], 0,
    'SIGPIPE, SIGHUP and twenty killed clients: it serves');
is($e->stop('TERM', 10), 0, 'and ends');
ok($e->clean, 'cleanly');

done_testing();
