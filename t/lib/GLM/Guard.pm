package GLM::Guard;

# Nothing that a test started outlives it, however it ends.  Loading this module
# forks: the child goes on as the test, the parent waits for its end, adopts what
# it left running (also daemons, and workers whose master was killed) and kills
# that.  A test that ends well and leaves something is a failure of its own.
#
#     use GLM::Guard;                       a Perl test, or the runner of all
#     perl -It/lib -MGLM::Guard=limit,600 -e 'exec { $ARGV[0] } @ARGV' build/t/ring

use strict;
use warnings;
use Config;
use POSIX qw(WNOHANG SIGTERM SIGKILL);
use Time::HiRes qw(sleep time);

use constant { PR_SET_PDEATHSIG => 1, PR_SET_CHILD_SUBREAPER => 36, LEFT => 97 };

my %PRCTL = (x86_64 => 157, aarch64 => 167);
my $loaded;

sub prctl {
    my ($what, $value) = @_;
    my $call = $PRCTL{ $Config{archname} =~ s/-.*//r } or return;
    syscall $call, $what, $value, 0, 0, 0;
}

# What came from above beside stdin, stdout and stderr (a pipe of CI, make's job
# server) is none of our business: a server that stays would hold it open.
sub close_inherited {
    for my $fd (grep { /^\d+$/ && $_ > 2 } map { s{.*/}{}r } glob '/proc/self/fd/*') {
        open my $f, '<', "/proc/self/fdinfo/$fd" or next;
        my ($flags) = map { /^flags:\s+([0-7]+)/ ? oct $1 : () } <$f>;
        POSIX::close($fd) if defined $flags && !($flags & 02000000);    # O_CLOEXEC: Perl's own
    }
}

sub import {
    my ($class, %o) = @_;
    return if $loaded++ || $^C || $^P;
    close_inherited();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    my $guard = $$;
    my $pid = fork // die "fork: $!\n";
    if ($pid) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        POSIX::_exit(watch($pid, $o{limit} // 0));
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    POSIX::_exit(128 + SIGTERM) if getppid != $guard;
}

# Waits for the child; the status to exit with.
sub watch {
    my ($child, $limit) = @_;
    my $by = 0;
    my $end = sub {
        $by ||= $_[0];
        kill TERM => $child;
        alarm 10;
    };
    local @SIG{qw(HUP INT QUIT TERM)} = map { my $n = $_; sub { $end->($n) } } 1, 2, 3, 15;
    local $SIG{ALRM} = sub {
        return kill_left($$) if $by;
        print STDERR "# still running after $limit s: ended\n";
        $end->(SIGTERM);
    };
    alarm $limit;
    my $p;
    do { $p = waitpid -1, 0 } until $p == $child || $p < 0;
    my $status = $?;
    alarm 0;
    my @left = kill_left($$, $status || $by ? 0 : 10);
    print STDERR "# left running: $_\n" for @left;
    return 128 + $by if $by;
    return 128 + ($status & 127) if $status & 127;
    return $status >> 8 || (@left ? LEFT : 0);
}

# Pids of all processes below this one that are no zombies.
sub below {
    my ($top) = @_;
    my (%children, @found);
    for my $stat (glob '/proc/[0-9]*/stat') {
        open my $f, '<', $stat or next;
        my ($pid, $state, $ppid) = (<$f> // '') =~ /^(\d+) \(.*\) (\S) (\d+)/s or next;
        push @{ $children{$ppid} }, [ $pid, $state ];
    }
    my @next = ($top);
    while (defined(my $pid = shift @next)) {
        for my $c (@{ $children{$pid} // [] }) {
            push @next, $c->[0];
            push @found, $c->[0] if $c->[1] !~ /[ZX]/;
        }
    }
    return @found;
}

# Gives what runs below a process some seconds to end by itself, then kills it;
# what that was.
sub kill_left {
    my ($top, $grace) = @_;
    my $until = time + ($grace // 0);
    my @pids;
    while ((@pids = below($top)) && time < $until) {
        reap($top);
        sleep 0.02;
    }
    my @left = map { my $c = command($_); defined $c ? "$_ $c" : () } @pids;
    for ($until = time + 20; @pids && time < $until; @pids = below($top)) {
        kill KILL => @pids;
        reap($top);
        sleep 0.01;
    }
    return @left;
}

sub reap {
    my ($top) = @_;
    return if $top != $$;
    1 while waitpid(-1, WNOHANG) > 0;
}

sub command {
    my ($pid) = @_;
    open my $f, '<', "/proc/$pid/cmdline" or return undef;
    local $/;
    return (<$f> // '') =~ s/[\0\n]+/ /gr;
}

1;
