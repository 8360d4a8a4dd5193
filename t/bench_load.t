#!/usr/bin/perl
# glm-bench load: a table that lacks what it is about, a model that is not the dummy's,
# written anew each time, or that takes the place of somebody's own.  Over t/fakecuda,
# small.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Engine;
use Math::BigInt;
use Test::More;

my $bench = build_dir() . '/glm-bench-fakecuda';
plan skip_all => 'the headers of CUDA are not here' unless -x $bench;

my ($dir, $shape) = (scratch('model'), scratch('shape'));

sub spew {
    my ($path, $text) = @_;
    open my $f, '>:raw', $path or die "$path: $!\n";
    print $f $text;
    close $f or die "$path: $!\n";
}

sub config {
    my ($layers, $hidden, $inner, $vocab) = @_;
    return qq({"name": "small", "num_layers": $layers, "hidden_size": $hidden, "inner_hidden_size": $inner,
        "num_attention_heads": @{[ $hidden / 64 ]}, "vocab_size": $vocab, "max_sequence_length": 64, "end_tokens": [1]});
}
mkdir $shape or die;
spew("$shape/config.json", config(40, 256, 768, 10240));

sub bench { return run([ $bench, 'load', @_ ], seconds => 120) }
my @small = ('--dir', $dir, '--shape', $shape, '--size', '3m', '--piece', '64k', '--readers', 2);

# ---- the table ----

my $n = qr/[0-9]+\.[0-9]+/;
my ($status, $out, $err) = bench(@small, '--rounds', 2);
is($status, 0, 'measured') or diag $err;
like($out, qr/ cores, \d+ GB of memory; a fake card\n/, 'the machine and the card');
like($out, qr/^8 of 40 layers of \S+, int4-g128, .* vocabulary \(2048\): $n GB in \Q$dir\E/m, 'whole layers, as much of the vocabulary');
like($out, qr/^written in $n s; 2 readers, pieces of 0.1 MB, 2 rounds, medians$/m, 'how');
like($out, qr/^cold: page cache dropped for the file, $n % of it left; reads (by O_DIRECT|are buffered)/m, 'what cold is');
like($out, qr/^\Q$_\E +$n +$n +$n$/m, $_) for 'raw reads', 'pinned copies';
like($out, qr/^\Q$_\E +$n +$n +$n +$n % +85 %$/m, $_) for 'load, cold', 'load, file cached';
like($out, qr/^\Q$_\E +$n +$n +$n +$n %$/m, $_) for 'whole start, cold', 'whole start, cached';
like($out, qr/^67 GB at these rates, extrapolated: $n s cold, $n s with the file cached$/m, 'the whole model');

($status, $out, $err) = bench(@small[0 .. 7], '--readers', 16, '--rounds', 1);
ok($status eq '0' && $out =~ /; 16 readers, / && $out =~ /^pinned copies/m, 'as many readers as there can be') or diag $err;

# ---- what it wrote ----

my $file = "$dir/model.safetensors";
my $text = slurp($file);
my $head = substr($text, 8, unpack('Q<', $text));
my ($begin, $end) = $head =~ /"layers\.7\.attention\.dense\.weight":\{"dtype":"I8","shape":\[256,128\],"data_offsets":\[(\d+),(\d+)\]/;
is($end - $begin, 256 * 128, 'int4, two a byte');
is((8 + length $head) % 64, 0, 'values begin at a multiple of 64');
is(length $text, 8 + length($head) + ($head =~ /.*,(\d+)\]\}/s)[0], 'and fill the file');

# glm_hash() of kernels/glm_hash.h, and FNV-1a.
my $mask = Math::BigInt->new(2)->bpow(64)->bsub(1);
sub mul { return $_[0]->copy->bmul(Math::BigInt->from_hex($_[1]))->band($mask) }
sub shifted { return $_[0]->copy->bxor($_[0]->copy->brsft($_[1])) }
sub word {
    my ($name, $i) = @_;
    my $seed = 0x811c9dc5;
    $seed = (($seed ^ $_) * 0x01000193) & 0xffffffff for unpack 'C*', $name;
    my $x = mul(Math::BigInt->new($i + 1), '9e3779b97f4a7c15')->bxor(Math::BigInt->new($seed)->blsft(32));
    $x = mul(shifted($x, 30), 'bf58476d1ce4e5b9');
    $x = mul(shifted($x, 27), '94d049bb133111eb');
    return $x->brsft(32)->numify;
}
for my $i (0, 1, 4097, 8191) {
    is(unpack('V', substr($text, 8 + length($head) + $begin + 4 * $i, 4)),
        word('layers.7.attention.dense.weight', $i), "word $i is the dummy's");
}

# ---- again ----

my $inode = (stat $file)[1];
($status, $out, $err) = bench(@small, '--rounds', 1, '--backend', 'cpu');
is($status, 0, 'again, on the CPU') or diag $err;
like($out, qr/^was there already; /m, 'what was there is used');
is((stat $file)[1], $inode, 'and not written anew');
like($out, qr/no card \(--backend cpu\): the CPU backend loads/, 'no card is told');
like($out, qr/^load, cold +$n +$n +$n +$n %$/m, 'nothing is wanted of it');
unlike($out, qr/pinned|whole start/, 'no copies');
{
    local $ENV{FAKECUDA_DEVICES} = 0;
    ($status, $out, $err) = bench(@small, '--rounds', 1);
    ok($status eq '0' && $out =~ /no card \(no CUDA device/, 'without a card: the CPU') or diag "$out$err";
    ($status, $out, $err) = bench(@small, '--backend', 'cuda');
    ok($status eq '1' && $err =~ /--backend cuda: no CUDA device/, 'unless the card is asked for');
}

($status, $out, $err) = bench(@small, '--rounds', 99, '--seconds', 1);
ok($status eq '0' && $out =~ /, (\d+) rounds, / && $1 < 99, '--seconds: no round begins later') or diag "$out$err";

my $at = 8 + length($head) + $begin + 1000;
substr($text, $at, 1) ^= "\x04";
spew($file, $text);
($status, $out, $err) = bench(@small, '--rounds', 1);
ok($status eq '1' && $err =~ /layers\.7\.attention\.dense\.weight is damaged/ && $out eq '', 'a flipped bit is seen');

rename $file, "$file.part" or die;
($status, $out, $err) = bench(@small, '--rounds', 1);
ok($status eq '0' && $out =~ /^written in/m, 'what is not complete is written anew') or diag $err;
($status, $out, $err) = bench(@small, '--rounds', 1, '--weights', 'int8');
ok($status eq '0' && $out =~ /^written in/m && $out =~ /layers of \S+, int8,/, 'so is another plan') or diag $err;

# ---- refusals ----

sub refused {
    my ($what, $want, $re, @args) = @_;
    my ($s, $o, $e) = bench(@args);
    ok($s eq $want && $e =~ $re && $o eq '', $what) or diag "status $s: $e";
}
refused('no --dir', 2, qr/--dir DIR is needed/, '--size', '1m');
refused('--model', 2, qr/--model: load writes/, '--dir', $dir, '--model', $shape);
refused('an unknown option', 2, qr/--nope/, '--dir', $dir, '--nope', 1);
($status, $out, $err) = run([ $bench, 'steps', '--rowz', 3 ], seconds => 60);
ok($status == 2 && $err =~ /^glm-bench: --rowz: not an option of steps$/m, 'so does steps') or diag $err;
($status, $out, $err) = run([ $bench, 'load', '--help' ], seconds => 60);
ok($status == 0 && $out =~ /^usage: glm-bench /, '--help of a command') or diag $err;
refused('an argument', 2, qr/^glm-bench: x: not an option of load/, 'x');
refused("--$$_[0] $$_[1]", 2, qr/--$$_[0]: "\Q$$_[1]\E" is not a number from/, '--dir', $dir, "--$$_[0]", $$_[1])
    for [ size => 0 ], [ size => '16x' ], [ readers => 0 ], [ readers => 17 ], [ piece => '1k' ], [ rounds => 0 ],
        [ seconds => 0 ];
($status, $out, $err) = run([ $bench, 'kernels' ]);
ok($status eq '1' && $err =~ /^glm-bench: kernels: .*without CUDA$/, 'kernels: not without a card');
refused('--weights int5', 2, qr/--weights: "int5" is none of/, '--dir', $dir, '--weights', 'int5');
refused('more than the shape has', 1, qr/--size: \d+ bytes are more than the 40 layers of \d+ bytes/,
    '--dir', "$dir.x", '--shape', $shape, '--size', '1g');
refused('a shape that is not there', 1, qr/config\.json/, '--dir', "$dir.x", '--shape', "$shape.x");
ok(!-e "$dir.x", 'nothing is made then');

spew("$shape/config.json", config(4000, 16384, 65536, 1024));
refused('no room', 1, qr/: \d{14} bytes are needed, there is room for \d+$/m, '--dir', "$dir.x", '--shape', $shape,
    '--size', '15000g', '--weights', 'fp16');
ok(!-e "$dir.x", 'nor then');
refused("somebody's model", 1, qr/a model is there that glm-bench load did not write/, '--dir', $shape, '--size', '1m');
refused('and it is not removed', 1, qr/nothing that glm-bench load wrote/, '--dir', $shape, '--remove');
ok(-e "$shape/config.json", 'it is there still');

# ---- --remove ----

spew("$shape/config.json", config(40, 256, 768, 100));
spew("$dir/mine", 'x');
is((bench('--dir', $dir, '--remove'))[0], 0, '--remove');
is(join(' ', glob "$dir/*"), "$dir/mine", 'only what it wrote');
unlink "$dir/mine";
($status, $out, $err) = bench(@small, '--rounds', 1);
ok($status eq '0' && $out =~ /^written in/m && $out =~ /vocabulary \(256\)/, 'and from the start') or diag $err;
is((bench('--dir', $dir, '--remove'))[0], 0, '--remove');
ok(!-e $dir, 'the directory too, when nothing else is there');

done_testing;
