package GLM::Engine;

# Programs without nginx: run one to its end, or keep one running and look at it.
#
#     my ($status, $out, $err) = run([ 'build/glm', 'tokenize', 'x' ], in => "text");
#     my $e = start('build/glm-engine', '--model', $dir, '--socket', $path);
#     $e->says(qr/serving/, 10) or die;
#     is($e->stop('TERM', 10), 0, 'exit status');

use strict;
use warnings;
use Exporter qw(import);
use File::Temp qw(tempdir);
use POSIX qw(:sys_wait_h);
use Test::More ();
use Time::HiRes qw(sleep time);
use GLM::Guard;

our @EXPORT = qw(run start wait_for build_dir scratch slurp);

my $dir = tempdir(CLEANUP => 1);
my $count = 0;
my %running;
my $self_pid = $$;

# Sanitized programs are slow.
sub patience { return $_[0] * ($ENV{GLM_SANITIZED} ? 4 : 1) }

sub build_dir { return $ENV{GLM_BUILD} // 'build' }

# A path below a directory that goes away with the test.
sub scratch { return "$dir/$_[0]" }

sub slurp {
    my ($path) = @_;
    open my $f, '<:raw', $path or return '';
    local $/;
    return scalar(<$f>) // '';
}

sub wait_for(&;$) {
    my ($cond, $seconds) = @_;
    my $end = time + patience($seconds // 10);
    while (1) {
        my $r = $cond->();
        return $r if $r || time > $end;
        sleep 0.01;
    }
}

sub start {
    my (@cmd) = @_;
    my %o = ref $cmd[-1] eq 'HASH' ? %{ pop @cmd } : ();
    my $self = bless { out => "$dir/out." . ++$count, err => "$dir/err.$count" };
    my $in = "$dir/in.$count";
    open my $f, '>:raw', $in or die "$in: $!\n";
    print $f $o{in} // '';
    close $f;

    my $pid = fork() // die "fork: $!\n";
    if ($pid == 0) {
        $ENV{$_} = $o{env}{$_} for keys %{ $o{env} // {} };
        open(STDIN, '<', $in) && open(STDOUT, '>', $self->{out})
            && open(STDERR, '>', $self->{err}) or POSIX::_exit(127);
        exec { $cmd[0] } @cmd or POSIX::_exit(127);
    }
    $self->{pid} = $pid;
    $running{$pid} = 1;
    return $self;
}

sub run {
    my ($cmd, %o) = @_;
    my $p = start(@$cmd, \%o);
    my $status = $p->ended($o{seconds} // 30);
    if (!defined $status) {
        $status = 'hangs';
        $p->stop('KILL');
    }
    return ($status, $p->out, $p->err);
}

sub out { return slurp($_[0]{out}) }
sub err { return slurp($_[0]{err}) }

# Waits until stderr has a match.
sub says {
    my ($self, $re, $seconds) = @_;
    wait_for { $self->err =~ $re || !$self->alive } $seconds;
    return $self->err =~ $re;
}

sub alive {
    my ($self) = @_;
    return 0 if defined $self->{status};
    return 1 if waitpid($self->{pid}, WNOHANG) == 0;
    $self->{status} = $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
    delete $running{ $self->{pid} };
    return 0;
}

# Exit status, 'signal N', or undef when it still runs.
sub ended {
    my ($self, $seconds) = @_;
    wait_for { !$self->alive } $seconds;
    return $self->{status};
}

sub kill {
    my ($self, $signal) = @_;
    return CORE::kill($signal, $self->{pid});
}

sub stop {
    my ($self, $signal, $seconds) = @_;
    $self->kill($signal // 'TERM') if $self->alive;
    my $status = $self->ended($seconds // 10);
    return $status if defined $status;
    $self->kill('KILL');
    $self->ended(10);
    return 'hangs';
}

# Lines that a sanitizer left, of a program's stderr.
sub clean {
    my ($self) = @_;
    return $self->err !~ /Sanitizer|runtime error/;
}

END {
    my $status = $?;
    if ($$ == $self_pid) {
        CORE::kill('KILL', $_) for keys %running;
        waitpid $_, 0 for keys %running;
    }
    $? = $status;
}

1;
