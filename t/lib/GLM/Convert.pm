package GLM::Convert;

# For tests of glm-convert: runs it, and looks at what it left.

use warnings;
use strict;
use File::Glob ':bsd_glob';     # no splitting at blanks of a path

use Cwd qw(abs_path);
use Digest::SHA;
use Exporter qw(import);
use File::Temp qw(tempdir);
use IO::Compress::Zip qw(:constants $ZipError);
use Test::More;
use GLM::Guard;

our @EXPORT = qw($bin $dir $made convert slurp spew files sum fresh fails
    str int4 tuple tensor pickled write_pt);

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

###############################################################################
# a writer of .pt files

sub str { my ($s) = @_; return 'X' . pack('V', length $s) . $s; }
sub int4 { my ($n) = @_; return 'J' . pack('l<', $n); }
sub tuple { return '(' . join('', @_) . 't'; }

sub tensor {
    my ($class, $key, $numel, $offset, $shape, $stride) = @_;
    return "ctorch._utils\n_rebuild_tensor_v2\n"
        . tuple(tuple(str('storage'), "ctorch\n$class\n", str($key), str('cpu'), int4($numel)) . 'Q',
            int4($offset), tuple(map { int4($_) } @$shape), tuple(map { int4($_) } @$stride),
            "\x89", "ccollections\nOrderedDict\n)R")
        . 'R';
}

sub pickled {
    my ($tensors, $more) = @_;
    return "\x80\x02}(" . str('module') . '}(' . join('', map { str($_->[0]) . $_->[1] } @$tensors)
        . 'u' . ($more // '') . 'u.';
}

# $tensors: list of [name, pickled tensor]; $storages: key => bytes
sub write_pt {
    my ($path, $tensors, $storages, $more) = @_;
    my $pickle = pickled($tensors, $more);
    my $zip = IO::Compress::Zip->new($path, Name => 'archive/data.pkl', Method => ZIP_CM_STORE)
        or die $ZipError;
    $zip->print($pickle);
    for my $key (sort keys %$storages) {
        $zip->newStream(Name => "archive/data/$key", Method => ZIP_CM_STORE);
        $zip->print($storages->{$key});
    }
    $zip->close;
}

1;
