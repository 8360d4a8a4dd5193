# A test that fails, dies or is killed leaves a server behind: it keeps what it
# inherited open, a pipe of CI among it, and CI waits for the end of that pipe.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test qw(:DEFAULT gone);
use POSIX ();
use Time::HiRes qw(time);

my $t = GLM::Test->new(no_module => 1);
my @PERL = ($^X, "-I$FindBin::Bin/lib");

# What all these scripts start: nginx with two workers, a daemon of nginx, a child
# that only forks and one that holds what the script holds.  Each tells its pid.
my $START = <<'END';
    use Test::More;
    use GLM::Test;
    $| = 1;
    my $t = GLM::Test->new(no_module => 1, workers => 2, locations => 'location / { return 204; }')->run;
    wait_for { $t->workers == 2 } 60;
    my $d = GLM::Test->new(no_module => 1, locations => 'location / { return 204; }');
    $d->conf(text => $d->conf_text =~ s/daemon off/daemon on/r);
    system $d->nginx_cmd($d->write_conf);
    my $daemon = wait_for { $d->read_file('nginx.pid') =~ /(\d+)/ ? $1 : 0 } 60;
    my @forked = map { my $how = $_; my $pid = fork // die; $pid or $how ? exec('sleep', 1000) : sleep 1000; $pid } 0, 1;
    ok(1, 'runs');
    print join(' ', 'pids', getppid, $$, $t->master, $t->workers, $daemon, @forked), "\n";
END

# Runs a command whose stdout, stderr and another file all are one pipe.  When the
# pids are there, $act may do something to them.  The pipe must come to its end: (exit
# status, what was written, pids).
sub run_script {
    my ($act, @cmd) = @_;
    pipe(my $r, my $w) or die "pipe: $!\n";
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        POSIX::dup2(fileno $w, $_) for 1, 2, 20;
        exec { $cmd[0] } @cmd or POSIX::_exit(127);
    }
    close $w;
    my ($out, @pids) = '';
    my $end = time + 60 * GLM::Test::patience();
    while (time < $end) {
        my $bits = '';
        vec($bits, fileno $r, 1) = 1;
        select($bits, undef, undef, 1) > 0 or next;
        my $n = sysread $r, $out, 65536, length $out;
        last if !$n;
        if (!@pids && $out =~ /^pids (.*)$/m) {
            @pids = split ' ', $1;
            $act->(@pids) if $act;
        }
        $end = 0 if !defined $n;
    }
    my $eof = $end && time < $end;
    kill KILL => $pid if !$eof;
    waitpid $pid, 0;
    return ($eof ? $? & 127 || $? >> 8 : 'open', $out, @pids);
}

sub leaves_nothing {
    my ($name, $status, $says, $script, $act) = @_;
    my ($got, $out, @pids) = run_script($act, @PERL, '-e', $START . $script);
    is($got, $status, "$name: status, and the pipe ends") or diag($out);
    like($out, $says, "$name: what it says");
    is(scalar @pids, 8, "$name: all started") or diag($out);
    my @left = grep { !gone($_) } @pids;
    is("@left", '', "$name: nothing is left of @pids");
    kill KILL => @left if @left;
}

my $wait = 'sleep 1 for 1 .. 60;';
leaves_nothing('a script that forgets done()', 1, qr/left running, is done\(\) missing\?.*nginx/, 'done_testing;');
leaves_nothing('a failure', 1, qr/Failed test 'no'/, q{ok(0, 'no'); done_testing;});
leaves_nothing('a script that dies', 255, qr/at its end/, '$! = 0; die "at its end";');
leaves_nothing('exit', 3, qr/left running/, 'exit 3;');
leaves_nothing('_exit', 97, qr/left running: \d+ nginx/, 'POSIX::_exit(0);');
leaves_nothing("a signal $_->[0]", $_->[1], qr/left running/, $wait, do { my $s = $_->[0]; sub { kill $s => $_[1] } })
    for [ TERM => 143 ], [ INT => 130 ], [ KILL => 137 ];
leaves_nothing('a signal to the guard', 143, qr/./, $wait, sub { kill TERM => $_[0] });
leaves_nothing('a loop that takes no signal', 143, qr/./, q{$SIG{TERM} = 'IGNORE';} . $wait, sub { kill TERM => $_[0] });

# The guard itself killed: the script hears of it, and ends its own; daemons are not its children

my (undef, undef, @pids) = run_script(sub { kill KILL => $_[0] }, @PERL, '-e', $START . $wait);
my $daemon = $pids[5];
ok((wait_for { !grep { !gone($_) } @pids[ 1 .. 4, 6, 7 ] } 60), 'the guard is killed: what the script started goes');
kill TERM => $daemon;
ok((wait_for { gone($daemon) } 60), 'but the daemon, which another guard may adopt');

# Programs that are no scripts

my @guarded = (@PERL, '-MGLM::Guard', '-e', 'exec { $ARGV[0] } @ARGV', 'sh', '-c');
my ($status, $out) = run_script(undef, @guarded, 'echo fine; exit 5');
is("$status $out", "5 fine\n", 'another program: its status');
($status, $out) = run_script(undef, @guarded, 'echo pids 1; kill -SEGV $$');
is($status, 128 + 11, 'a signal');
($status, $out) = run_script(undef, @guarded, 'sleep 1000 & echo pids $!');
is($status, 97, 'a child of it that stays');
like($out, qr/left running: \d+ sleep 1000/, 'is told');
($status, $out) = run_script(undef, @guarded, '(sleep 0.3) & :');
is("$status $out", '0 ', 'one that ends soon is none');
$guarded[2] = '-MGLM::Guard=limit,1';
($status, $out) = run_script(undef, @guarded, 'sleep 1000');
is($status, 143, 'a limit');
like($out, qr/still running after 1 s/, 'is told');

$t->done;
