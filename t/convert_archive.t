#!/usr/bin/perl
# The published archive in parts, read as it lies on disk: other bits than from
# its files, or a damaged part that no one names, would show here.

use warnings;
use strict;
use File::Glob ':bsd_glob';

use File::Copy qw(copy);
use File::Path qw(make_path remove_tree);
use Test::More;

use lib 't/lib';
use GLM::Convert;

my $tree = "$dir/tree/glm-130b-sat";
system($^X, 't/fake_checkpoint.pl', $tree) == 0 or die "no fake checkpoint\n";
my @cfg = ('--config', "$tree/config.json");
my ($rc, $said) = convert('-q', @cfg, $tree, "$dir/whole");
is($rc, 0, 'the fake checkpoint is converted from its files') or diag($said);
my $want = sum("$dir/whole");

# An archive of the tree in some form, cut into parts; its directory.
sub archive {
    my ($format, $suffix, $size, @split) = @_;
    my $d = "$dir/tar" . $made++;
    make_path($d);
    my $tar = "$d/glm-130b-sat.tar";
    system('tar', '-C', "$dir/tree", "--format=$format", '-cf', $tar, 'glm-130b-sat/latest',
        map { "glm-130b-sat/49300/$_" } files("$tree/49300")) == 0 or die "tar failed\n";
    return $d unless @split;
    system('split', '-b', $size, @split, $tar, "$tar.part_") == 0 or die "split failed\n";
    unlink $tar;
    return $d;
}

my $size = (-s "$tree/49300/mp_rank_00_model_states.pt") * 8;
my $cut = int($size / 59) | 1;           # no multiple of anything

for my $format (qw(ustar gnu posix)) {
    my $d = archive($format, 'part_', $cut, '-d', '-a', 2);
    my @parts = glob("$d/*.part_*");
    cmp_ok(scalar @parts, '>', 58, "$format: sixty parts");
    my $dst = fresh();
    my ($status, $out) = convert(@cfg, $d, $dst);
    is($status, 0, "$format: the directory of the parts") or diag($out);
    is(sum($dst), $want, "$format: the same bits");
    like($out, qr/, from 8 rank files$/m, "$format: eight ranks");
}

my $letters = archive('gnu', 'part_', 300_001, '-a', 2);
for my $src ($letters, (glob("$letters/*.part_*"))[0, 3]) {
    my $dst = fresh();
    my ($status, $out) = convert('-q', @cfg, $src, $dst);
    is($status, 0, 'parts named by letters: by ' . ($src =~ /part_(..)/ ? "part $1" : 'the directory')) or diag($out);
    is(sum($dst), $want, 'the same bits');
}
{
    my $d = archive('gnu');
    my $dst = fresh();
    my ($status, $out) = convert('-q', @cfg, '--quant', 'int4', "$d/glm-130b-sat.tar", $dst);
    is($status, 0, 'a whole archive, to int4 at once') or diag($out);
    ($status, $out) = convert('-q', @cfg, '--quant', 'int4', $tree, "$dst-2");
    is(sum($dst), sum("$dst-2"), 'the bits of the files');
    copy("$tree/config.json", "$d/config.json");
    ($status, $out) = convert('-q', '-n', "$d/glm-130b-sat.tar", $dst);
    is($status, 0, 'config.json beside the archive is taken') or diag($out);
    copy("$d/glm-130b-sat.tar", "$d/other.tar");
    fails('two archives in a directory', "tar\\d+: has \\S+\\.tar and \\S+\\.tar: name one", @cfg, $d);
}

###############################################################################
# damage: the part and the byte are named

my $d = archive('gnu', 'part_', $cut, '-d', '-a', 2);
my @parts = glob("$d/*.part_*");

# Does it with one part changed, then puts it back.
sub spoilt {
    my ($i, $change, $what, $says) = @_;
    my $good = slurp($parts[$i]);
    my $bad = $change->($good);
    defined $bad ? spew($parts[$i], $bad) : unlink $parts[$i];
    my ($status, $out) = convert('-q', @cfg, $d, my $dst = fresh());
    ok($status eq '1' && $out =~ $says && !-e $dst, $what) or diag("status $status: $out");
    spew($parts[$i], $good);
    return $out;
}

sub flipped { my ($s, $at) = @_; substr($s, $at, 1) ^= "\x10"; return $s; }

for my $i (0, 7, 30, $#parts) {
    my $at = $i == 0 ? 40_000 : $i == $#parts ? 10 : int($cut / 2);
    my $out = spoilt($i, sub { flipped($_[0], $at) }, "a flipped bit in part $i",
        qr/^glm-convert: \S+\.part_(\d\d), byte (\d+) to (?:\S+\.part_(\d\d), )?byte (\d+): .*(?:damaged|cut short)/);
    my ($p, $from, $q, $to) = $out =~ /part_(\d\d), byte (\d+) to (?:\S+\.part_(\d\d), )?byte (\d+)/;
    $q //= $p;
    ok($p * $cut + $from <= $i * $cut + $at && $i * $cut + $at < $q * $cut + $to, 'it is within the bytes named')
        or diag("$i, $at: $out");
}
spoilt(0, sub { flipped($_[0], 3) }, 'a header of the archive',
    qr/\.part_00, byte 0: no header of a tar archive: is the first part missing\?/);
spoilt(20, sub { substr($_[0], 0, 1000) }, 'a part that is cut short',
    qr/\.part_20, byte 1000: the part ends here, others have $cut bytes/);
spoilt($#parts, sub { substr($_[0], 0, 10) }, 'the last part is cut short',
    qr/\.part_$#parts, byte 10: the archive ends here, \d+ bytes before the end of \S+mp_rank_07_model_states\.pt/);
spoilt(20, sub { undef }, 'a missing part', qr/\.part_20: missing, but \S+part_21 is there/);
spoilt(0, sub { undef }, 'the first part is missing', qr/\.part_01, byte 0: no header of a tar archive: is the first/);
spoilt($#parts, sub { undef }, 'the last is missing',
    qr/\.part_@{[$#parts - 1]}, byte $cut: the archive ends here.* parts after it are missing/);
{
    rename $parts[0], "$dir/p0";
    rename $parts[1], "$dir/p1";
    fails('the first parts are missing', '\.part_02: is the first part there is, the ones before it are missing', @cfg, $d);
    rename "$dir/p0", $parts[0];
    rename "$dir/p1", $parts[1];
}

{
    # parts of another archive between them: sizes are right, bytes are not
    my $other = slurp($parts[9]);
    spoilt(10, sub { $other }, 'a part is another one', qr/\.part_\d\d, byte \d+/);
}

{
    my $e = "$dir/tree2";
    make_path("$e/x/49300");
    copy($_, "$e/x/49300/") for glob("$tree/49300/*.pt");
    system('tar', '-C', $e, '-cf', "$e/a.tar", 'x') == 0 or die;
    fails('no latest in it', 'a\.tar: no file `latest` in it', @cfg, "$e/a.tar");
    spew("$e/x/latest", '50000');
    system('tar', '-C', $e, '-cf', "$e/a.tar", 'x') == 0 or die;
    fails('another iteration', 'a\.tar: x/50000: no mp_rank_00_model_states\.pt in it', @cfg, "$e/a.tar");
    spew("$e/x/latest", '49300');
    unlink "$e/x/49300/mp_rank_05_model_states.pt";
    system('tar', '-C', $e, '-cf', "$e/a.tar", 'x') == 0 or die;
    fails('a rank is missing', 'a\.tar: x/49300/mp_rank_05_model_states\.pt: missing, but rank 7', @cfg, "$e/a.tar");
}

{
    # killed in the middle of a file, from the parts; then one of them is another
    my $dst = fresh();
    my @time = (stat $parts[3])[8, 9];
    utime(@time, $parts[3]);                # whole seconds, to be set again
    my $dead = system('/bin/sh', '-c', "ulimit -c 0; ulimit -f 2000; exec '$bin' -q @cfg '$d' '$dst' 2>/dev/null");
    isnt($dead & 127, 0, 'killed while it reads the parts');
    utime($time[0], $time[1] - 10, $parts[3]);
    my ($status, $out) = convert('-q', @cfg, $d, $dst);
    like($out, qr/unfinished conversion with other input .*"glm-130b-sat\.tar\.part_03 of \d+ bytes/, 'a part that has changed is refused');
    utime(@time, $parts[3]);
    ($status, $out) = convert(@cfg, $d, $dst);
    is($status, 0, 'goes on') or diag($out);
    like($out, qr/^going on with an unfinished conversion/m, 'where it was');
    is(sum($dst), $want, 'to the same bits');
}

###############################################################################
# another architecture

sub asked { return slurp("$tree/config.json") =~ s/$_[0]/$_[1]/r; }
for (['"hidden_size": 192', '"hidden_size": 384', 'word_embeddings\.weight has the shape \[294, 192\], the configuration asks for \[294, 384\]'],
    ['"inner_hidden_size": 512', '"inner_hidden_size": 768', 'layers\.0\.mlp\.dense_h_to_4h\.weight has the shape \[128, 192\]'],
    ['"num_layers": 2', '"num_layers": 70', 'layers\.2\.input_layernorm\.weight is missing'])
{
    my ($from, $to, $says) = @$_;
    spew("$dir/config.json", asked($from, $to));
    fails("not this architecture: $to", "mp_rank_00_model_states\\.pt: transformer\\.$says",
        '--config', "$dir/config.json", $d);
}
fails('nor the published model', 'mp_rank_00_model_states\.pt: transformer\.word_embeddings\.weight has the shape '
    . '\[294, 192\], the configuration asks for \[18816, 12288\]', '--config', 'glm-130b', $d);

done_testing();
