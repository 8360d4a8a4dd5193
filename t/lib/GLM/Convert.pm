package GLM::Convert;

# For tests of glm-convert: runs it, and looks at what it left.

use warnings;
use strict;
use File::Glob ':bsd_glob';     # no splitting at blanks of a path

use Cwd qw(abs_path);
use Digest::SHA;
use Exporter qw(import);
use File::Temp qw(tempdir);
use Test::More;

our @EXPORT = qw($bin $dir $made convert slurp spew files sum fresh fails);

our $bin = abs_path(($ENV{GLM_BUILD} // 'build') . '/glm-convert');
die "glm-convert is not built\n" unless defined $bin && -x $bin;

our $dir = tempdir(CLEANUP => 1);
our $made = 0;

# Runs glm-convert; exit status (or "signal N") and all it printed.
sub convert {
    my (@args) = @_;
    my $log = "$dir/log";
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        open(STDOUT, '>', $log) && open(STDERR, '>&', \*STDOUT) or exit 99;
        exec { $bin } $bin, @args or exit 99;
    }
    waitpid($pid, 0);
    my $status = $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
    return ($status, slurp($log));
}

sub slurp {
    my ($path) = @_;
    open(my $f, '<:raw', $path) or die "$path: $!";
    local $/;
    return scalar <$f>;
}

sub spew {
    my ($path, $bytes) = @_;
    open(my $f, '>:raw', $path) or die "$path: $!";
    print {$f} $bytes;
    close $f or die "$path: $!";
}

sub files { my ($d) = @_; return map { s{.*/}{}r } sort glob("$d/*"); }

# The digest of all values and headers of a model directory.
sub sum {
    my ($d) = @_;
    my $sha = Digest::SHA->new(256);
    $sha->add(slurp($_)) for sort glob("$d/*.safetensors");
    return $sha->hexdigest;
}

sub fresh { return "$dir/out" . $made++; }

# A failure is one line that begins with the program's name, exit status 1,
# and no model.
sub fails {
    my ($what, $says, @args) = @_;
    my $dst = fresh();
    my ($status, $out) = convert('-q', @args, $dst);
    my @lines = split /\n/, $out;
    ok($status eq '1' && @lines == 1 && $out =~ /^glm-convert: .*$says/ && !-e $dst, $what)
        or diag("status $status: $out");
}

1;
