#!/usr/bin/perl
# A conversion that is killed and goes on: other bits than of one that was not, or
# bytes that no checksum covers, would show here.

use warnings;
use strict;
use File::Glob ':bsd_glob';

use Compress::Zlib qw(crc32);
use File::Copy qw(copy);
use POSIX qw(:sys_wait_h);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use GLM::Convert;

my $src = "$dir/glm-130b-sat";
system($^X, 't/fake_checkpoint.pl', $src, 'layers=3') == 0 or die "no fake checkpoint\n";
my @how = ('--quant', 'int4-g32', '--quant-except', '*.1.*=fp16', '--shard-size', '300K', $src);

# [name, bytes] of all tensors of a file, and its checksums.
sub tensors {
    my ($path) = @_;
    my $bytes = slurp($path);
    my $n = unpack('Q<', $bytes);
    my $header = substr($bytes, 8, $n);
    my %crc = $header =~ /"crc32\.([^"]+)":"([0-9a-f]{8})"/g;
    my @t;
    while ($header =~ /"([^"]+)":\{"dtype":"\w+","shape":\[[\d,]*\],"data_offsets":\[(\d+),(\d+)\]/g) {
        push @t, [$1, substr($bytes, 8 + $n + $2, $3 - $2)];
    }
    return (\%crc, @t);
}

my ($rc, $said) = convert('-q', @how, "$dir/whole");
is($rc, 0, 'a conversion that nothing stops') or diag($said);
my $want = sum("$dir/whole");
my $ntensors = 0;
{
    my ($bad, $files) = (0, 0);
    for my $file (glob("$dir/whole/*.safetensors")) {
        my ($crc, @t) = tensors($file);
        $bad += grep { ($crc->{$_->[0]} // '') ne sprintf('%08x', crc32($_->[1])) } @t;
        $bad++ if keys %$crc != @t;
        $ntensors += @t;
        $files++;
    }
    cmp_ok($files, '>', 4, 'several files');
    is($ntensors, 12 * 3 + 3 + 4 * 2, 'with all tensors and their scales');
    is($bad, 0, 'each has its checksum in the header');
    ($rc, $said) = convert('-q', '--no-checksums', @how, "$dir/bare");
    is(grep({ slurp($_) =~ /crc32/ } glob("$dir/bare/*.safetensors")), 0, '--no-checksums leaves them out');
}

sub marks { my ($d) = @_; return -e "$d/convert.journal.tmp" ? () = slurp("$d/convert.journal.tmp") =~ /^[0-9a-f]{8} /mg : 0; }

# Runs it until marks more tensors are there, then sends the signal; how it ended.
sub stopped {
    my ($dst, $marks, $signal, @args) = @_;
    my $goal = marks($dst) + $marks;
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        open(STDOUT, '>', "$dir/log") && open(STDERR, '>&', \*STDOUT) or exit 99;
        exec { $bin } $bin, @args, $dst or exit 99;
    }
    my $until = time + 60;
    while (waitpid($pid, WNOHANG) == 0) {
        kill($signal, $pid) if marks($dst) >= $goal || time > $until;
        sleep 0.0005;
    }
    return $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
}

sub clean { my ($d) = @_; return !grep { /\.tmp$/ } files($d); }

{
    my ($dst, $kills, $end) = (fresh(), 0, '');
    for (1 .. 200) {
        $end = stopped($dst, 1 + $_ % 5, 'KILL', '-q', @how);
        last if $end ne 'signal 9';
        $kills++;
        ok(!-e "$dst/config.json" && !glob("$dst/*.safetensors"), 'no model while it is unfinished') if $kills < 4;
    }
    cmp_ok($kills, '>', 3, "killed $kills times");
    is($end, 0, 'then it comes to its end') or diag(slurp("$dir/log"));
    is(sum($dst), $want, 'with the bits of one that nothing stopped');
    is_deeply([files($dst)], [files("$dir/whole")], 'and no other files');
}

{
    # the limit on a file's size kills in the middle of a write
    for my $blocks (1, 100, 250, 400) {
        my $dst = fresh();
        my $dead = system('/bin/sh', '-c', "ulimit -c 0; ulimit -f $blocks; exec '$bin' -q @how '$dst' 2>/dev/null");
        isnt($dead, 0, "killed at $blocks blocks of a file");
        my ($status, $out) = convert('-q', @how, $dst);
        is($status, 0, 'goes on') or diag($out);
        is(sum($dst), $want, 'the same bits');
    }
}

# An unfinished conversion with some tensors.
sub unfinished {
    my ($least, $signal) = @_;
    for (1 .. 50) {
        my $dst = fresh();
        stopped($dst, $least, $signal, '-q', @how);
        return $dst if -e "$dst/convert.journal.tmp" && marks($dst) >= $least;
    }
    die "cannot be stopped in time\n";
}

{
    my $dst = unfinished(10, 'INT');
    my $marks = marks($dst);
    my ($status, $out) = convert(@how, $dst);
    is($status, 0, 'interrupted by SIGINT, gone on with') or diag($out);
    like($out, qr/^going on with an unfinished conversion, of which $marks tensors/m, 'and told so');
    is(sum($dst), $want, 'the same bits');
}

{
    my $dst = unfinished(5, 'KILL');
    for my $other (['--quant', 'int8', @how[4 .. 6]], ['--no-checksums', @how], [@how[0 .. 4], '299K', $src]) {
        my ($status, $out) = convert('-q', @$other, $dst);
        is($status, 1, "other options: @$other[0, 1]");
        like($out, qr/^glm-convert: \Q$dst\E: holds an unfinished conversion with other input or options \(".*", now ".*"\); the same/,
            'are refused, with the difference');
    }
    cmp_ok(marks($dst), '>=', 5, 'what is there stays');
    my $file = "$src/49300/mp_rank_03_model_states.pt";
    my @time = (stat $file)[8, 9];
    utime($time[0], $time[1] + 2, $file);
    my ($status, $out) = convert('-q', @how, $dst);
    like($out, qr/options \("mp_rank_03_model_states\.pt of \d+ bytes, time \d+", now "mp_rank_03/, 'another source too');
    utime(@time, $file);
    ($status, $out) = convert('-q', '--force', '--no-checksums', @how, $dst);
    is($status, 0, '--force begins anew') or diag($out);
    is(sum($dst), sum("$dir/bare"), 'as it was told');
    ok(clean($dst), 'and leaves nothing of the other');
}

{
    # bytes that changed on disk since, in the first file and in a later one
    for my $which (0, -1) {
        my $dst = unfinished(15, 'KILL');
        my @files = sort glob("$dst/*.safetensors.tmp");
        my $bytes = slurp($files[$which]);
        substr($bytes, length($bytes) - ($which ? 10 : 1000), 1) ^= "\1";
        spew($files[$which], $bytes);
        my ($status, $out) = convert('-q', @how, $dst);
        is($status, 0, 'an unfinished file that has changed') or diag($out);
        is(sum($dst), $want, 'is written again');
    }
    my $dst = unfinished(15, 'KILL');
    unlink((sort glob("$dst/*.safetensors.tmp"))[0]);
    spew("$dst/convert.journal.tmp", slurp("$dst/convert.journal.tmp") . '0123');
    my ($status, $out) = convert('-q', @how, $dst);
    is($status, 0, 'one that is gone, and a journal cut off in a line') or diag($out);
    is(sum($dst), $want, 'the same bits');
}

{
    # killed while names change hands: some have their last name, some not
    my $unfinished = unfinished(1, 'KILL');
    my ($identity) = slurp("$unfinished/convert.journal.tmp") =~ /\A(.*?^--\n)/ms;
    for my $done (0, 2, 99) {
        my $dst = fresh();
        mkdir $dst;
        my @names = files("$dir/whole");
        my $marks = '';
        for (glob("$dir/whole/*.safetensors")) {
            my ($crc) = tensors($_);
            $marks .= "$crc->{$_} $_\n" for sort keys %$crc;
        }
        my $n = 0;
        for (grep({ $_ ne 'config.json' } @names), 'config.json') {
            copy("$dir/whole/$_", "$dst/$_" . ($n++ < $done ? '' : '.tmp'));
        }
        spew("$dst/convert.names.tmp", join('', map { "$_\n" } @names));
        spew("$dst/convert.journal.tmp", $identity . $marks);
        my ($status, $out) = convert(@how, $dst);
        if ($done == 99) {
            like($out, qr/has a \S+ already; --force/, 'killed after the last name: it is a model');

        } else {
            is($status, 0, "killed after $done names") or diag($out);
            like($out, qr/of which $ntensors tensors/, 'nothing is converted again');
        }
        is(sum($dst), $want, 'the model is whole');
        ok(clean($dst) || $done == 99, 'nothing else is left');
    }
}

{
    # --force over a model, killed: the old one stays until the end
    my $dst = fresh();
    my ($status) = convert('-q', '--shard-size', '300K', $src, $dst);
    my $old = sum($dst);
    stopped($dst, 12, 'KILL', '-q', '-f', @how);
    SKIP: {
        skip 'was not killed in time', 3 if sum($dst) eq $want;
        is(sum($dst), $old, 'the old model is whole');
        my $out;
        ($status, $out) = convert('-f', @how, $dst);
        like($out, qr/^going on with/m, 'the same command goes on');
        is(sum($dst), $want, 'to the new model');
    }
}

done_testing();
