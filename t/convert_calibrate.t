#!/usr/bin/perl
# Weights that are quantised for a text: no better than the nearest integers, or other
# bits after a kill, would show here.

use warnings;
use strict;
use File::Glob ':bsd_glob';

use Cwd qw(abs_path);
use File::Path qw(make_path);
use POSIX qw(:sys_wait_h);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use GLM::Convert;

my $demo = abs_path('models/demo');
my $glm = abs_path(($ENV{GLM_BUILD} // 'build') . '/glm');
my @docs = split /^%%\n/m, slurp('t/data/demo/heldout.txt');
my ($some, $other) = ("$dir/some.txt", "$dir/other.txt");
spew($some, join('', @docs[grep { $_ % 3 == 0 } 0 .. $#docs]));
spew($other, join("%%\n", @docs[grep { $_ % 12 == 1 } 0 .. $#docs]));

# The demo model as a checkpoint of one rank.
sub demo_checkpoint {
    my $d = "$dir/demo";
    make_path("$d/1");
    spew("$d/latest", '1');
    my $bytes = slurp((glob("$demo/*.safetensors"))[0]);
    my $n = unpack('Q<', $bytes);
    my $header = substr($bytes, 8, $n);
    my (@tensors, %storages);
    while ($header =~ /"([^"]+)":\{"dtype":"F16","shape":\[([\d,]*)\],"data_offsets":\[(\d+),(\d+)\]/g) {
        my ($name, $shape, $from, $to) = ($1, [split /,/, $2], $3, $4);
        my $key = scalar @tensors;
        $storages{$key} = substr($bytes, 8 + $n + $from, $to - $from);
        push @tensors, ["transformer.$name", tensor('HalfStorage', $key, ($to - $from) / 2, 0, $shape,
            @$shape == 2 ? [$shape->[1], 1] : [1])];
    }
    write_pt("$d/1/mp_rank_00_model_states.pt", \@tensors, \%storages);
    return $d;
}

my $src = demo_checkpoint();
my @cfg = ('--config', "$demo/config.json", '--tokenizer', $demo);
my @how = (@cfg, '--quant', 'int4-g128', '--calibrate', $some);

###############################################################################
# the loss of a text that the weights were not quantised for

my %loss;
for (['fp16'], ['row', '--quant', 'int4'], ['g128', '--quant', 'int4-g128'],
    ['calibrated', '--quant', 'int4-g128', '--calibrate', $some])
{
    my ($name, @quant) = @$_;
    my ($status, $out) = convert(@cfg, @quant, $src, "$dir/$name");
    is($status, 0, "the demo model, $name") or diag($out);
    like($out, qr/^needs \d\S* MB of disk, \d\S* MB of memory\ncalibrates with (\d+) tokens in \d+ windows: about \d+ s/m,
        'what calibration takes is told') if $name eq 'calibrated';
    my $said = `'$glm' eval --model '$dir/$name' ppl '$other' --documents %% --eop --gmask --unidirectional 2>&1`;
    ($loss{$name}) = $said =~ /^loss: .*average = ([\d.]+)/m;
    ok(defined $loss{$name}, "its loss is $loss{$name}") or diag($said);
}
my ($row, $g128, $calibrated) = map { $loss{$_} - $loss{fp16} } qw(row g128 calibrated);
diag(sprintf 'loss over fp16 (%.3f): row %.3f, g128 %.3f, calibrated g128 %.3f', $loss{fp16}, $row, $g128, $calibrated);
cmp_ok($g128, '<', $row, 'groups of 128 lose less than rows');
cmp_ok($calibrated, '<', $g128, 'calibrated ones less than these');
cmp_ok($calibrated, '<=', $row / 2, 'and at most half of rows');
like(slurp("$dir/calibrated/config.json"), qr/"type": "int4",\s+"group_size": 128\s+\}/, 'config.json is that of g128');

###############################################################################
# killed and gone on with

sub marks { my ($d) = @_; return -e "$d/convert.journal.tmp" ? () = slurp("$d/convert.journal.tmp") =~ /^[0-9a-f]{8} /mg : 0; }
my @short = ('-q', @how, '--calibrate-tokens', 1500, '--quant-except', 'layers.[2-7].*=int8');
my ($status, $out) = convert(@short, $src, "$dir/short");
is($status, 0, 'a short text, layers of int8') or diag($out);
{
    my $dst = fresh();
    my $kills = 0;
    for my $goal (4, 30, 60) {
        my $pid = fork() // die "fork: $!";
        if ($pid == 0) {
            open(STDOUT, '>', "$dir/log") && open(STDERR, '>&', \*STDOUT) or exit 99;
            exec { $bin } $bin, @short, $src, $dst or exit 99;
        }
        my $until = time + 60;
        while (waitpid($pid, WNOHANG) == 0) {
            kill('KILL', $pid) if marks($dst) >= $goal || time > $until;
            sleep 0.001;
        }
        $kills++ if $? & 127;
    }
    cmp_ok($kills, '>', 1, "killed $kills times");
    ($status, $out) = convert(@how[0 .. $#how - 1], $other, '--calibrate-tokens', 1500,
        '--quant-except', 'layers.[2-7].*=int8', $src, $dst);
    like($out, qr/holds an unfinished conversion .*"calibrated \w+", now "calibrated/, 'another text is refused');
    ($status, $out) = convert(@short, $src, $dst);
    is($status, 0, 'goes on') or diag($out);
    is(sum($dst), sum("$dir/short"), 'to the bits of one that was not killed');
}

###############################################################################
# what cannot be

fails('no text', 'none\.txt: no such file', @cfg, '--quant', 'int8', '--calibrate', "$dir/none.txt", $src);
spew("$dir/empty.txt", '');
fails('an empty text', 'the text for calibration is empty', @cfg, '--quant', 'int8', '--calibrate', "$dir/empty.txt", $src);
fails('no tokenizer', 'demo: no tokenizer in it, which --calibrate needs', '--config', "$demo/config.json",
    '--quant', 'int8', '--calibrate', $some, $src);
fails('groups that the kernels cannot run', 'layers\.0\.attention\.dense\.weight: calibration needs groups that are '
    . 'multiples of 16 columns, not 8', @cfg, '--quant', 'int8', '--quant-ranks', 32, '--calibrate', $some, $src);
fails('no [gMASK]', 'calibration needs \[gMASK\] and sop in config\.json', '--tokenizer', $demo, '--config', do {
        spew("$dir/config.json", slurp("$demo/config.json") =~ s/"\[gMASK\]"/"other"/r);
        "$dir/config.json";
    }, '--quant', 'int8', '--calibrate', $some, $src);
fails("another model's tokenizer", 'the text has the id \d+, the model.s vocabulary 512', '--tokenizer', $demo,
    '--config', 't/data/glm-mini-random/config.json', '--quant', 'int8', '--calibrate', $some, 't/data/glm-mini-random/tp1');
($status, $out) = convert('--calibrate', $some, $src, fresh());
ok($status eq '2' && $out =~ /--calibrate need --quant/, 'without --quant') or diag($out);

done_testing();
