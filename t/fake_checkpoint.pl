#!/usr/bin/perl
# Writes a checkpoint with GLM-130B's names, types and relations in other sizes:
#     fake_checkpoint.pl DIR [hidden=192] [heads=8] [layers=2] [vocab=2352] [ranks=8]
#         [iteration=49300]
# inner is 8/3 of hidden.  hidden=12288 layers=1
# heads=96 vocab=150528 is a layer in full size: 7.4 GB.

use warnings;
use strict;

use Compress::Zlib qw(crc32);
use File::Path qw(make_path);

my $dir = shift // die "usage: $0 DIR [hidden=N] [heads=N] [layers=N] [vocab=N] [ranks=N] [iteration=N]\n";
my %o = (hidden => 192, heads => 8, layers => 2, vocab => 2352, ranks => 8, iteration => 49300);
for (@ARGV) {
    my ($k, $v) = /^(\w+)=(\d+)$/ or die "$0: $_ is no option\n";
    exists $o{$k} or die "$0: $_ is no option\n";
    $o{$k} = $v;
}
my ($H, $A, $L, $V, $R) = @o{qw(hidden heads layers vocab ranks)};
my $I = $H * 8 / 3;

# [name, rows, cols] of a rank's part; cols absent for a vector
my @tensors = (['word_embeddings.weight', $V / $R, $H], (map {
        my $l = "layers.$_";
        (["$l.input_layernorm.weight", $H], ["$l.input_layernorm.bias", $H],
            ["$l.attention.rotary_emb.inv_freq", $H / $A / 2],
            ["$l.attention.query_key_value.weight", 3 * $H / $R, $H],
            ["$l.attention.query_key_value.bias", 3 * $H / $R],
            ["$l.attention.dense.weight", $H, $H / $R], ["$l.attention.dense.bias", $H],
            ["$l.post_attention_layernorm.weight", $H], ["$l.post_attention_layernorm.bias", $H],
            ["$l.mlp.dense_h_to_4h.weight", 2 * $I / $R, $H], ["$l.mlp.dense_h_to_4h.bias", 2 * $I / $R],
            ["$l.mlp.dense_4h_to_h.weight", $H, $I / $R], ["$l.mlp.dense_4h_to_h.bias", $H])
    } 0 .. $L - 1), ['final_layernorm.weight', $H], ['final_layernorm.bias', $H]);

# Values: a mebibyte of fp16 below 2, read from another place for each tensor.
srand(130);
my $noise = pack('v*', map { int(rand(65536)) & 0xafff } 1 .. 1 << 19) x 2;

sub str { my ($s) = @_; return 'X' . pack('V', length $s) . $s; }
sub int4 { my ($n) = @_; return 'J' . pack('l<', $n); }

sub pickle {
    my $p = "\x80\x02}(" . str('module') . '}(';
    for my $i (0 .. $#tensors) {
        my ($name, @dim) = @{$tensors[$i]};
        my $n = $dim[0] * ($dim[1] // 1);
        $p .= str("transformer.$name") . "ctorch._utils\n_rebuild_tensor_v2\n((" . str('storage')
            . "ctorch\nHalfStorage\n" . str($i) . str('cuda:0') . int4($n) . 'tQ' . int4(0)
            . '(' . join('', map { int4($_) } @dim) . 't(' . (@dim == 2 ? int4($dim[1]) : '') . int4(1)
            . "t\x89ccollections\nOrderedDict\n)RtR";
    }
    return $p . 'u' . str('iteration') . int4($o{iteration}) . 'u.';
}

# Hands the bytes of a tensor to $out in pieces; how many there were, and their checksum.
sub values_of {
    my ($rank, $i, $out) = @_;
    my (undef, $rows, $cols) = @{$tensors[$i]};
    my $copy = defined $cols ? $rank : $tensors[$i][0] =~ /query|h_to_4h\.bias/ ? $rank : 0;
    my ($left, $crc) = ($rows * ($cols // 1) * 2, 0);
    my $at = 2 * (($i * 7919 + $copy * 104729) % (1 << 19));
    while ($left > 0) {
        my $piece = substr($noise, $at, $left < 1 << 20 ? $left : 1 << 20);
        $crc = crc32($piece, $crc);
        $out->($piece);
        $left -= length $piece;
        $at = ($at + 2) % (1 << 20);
    }
    return $crc;
}

# A stored zip as torch.save makes it: values at multiples of 64, zip64 throughout.
sub write_rank {
    my ($path, $rank) = @_;
    open(my $f, '>:raw', $path) or die "$path: $!\n";
    my ($central, $n) = ('', 0);
    my $member = sub {
        my ($name, $size, $write) = @_;
        my $at = tell $f;
        my $pad = -($at + 30 + length($name) + 20 + 4) % 64;
        my $head = sub {
            return pack('vvvvvVVVvv', 45, 0, 0, 0, 0x21, $_[0], (0xffffffff) x 2, length $name, 24 + $pad)
                . $name . pack('vvQ<Q<', 1, 16, $size, $size) . 'FB' . pack('v', $pad) . 'Z' x $pad;
        };
        print {$f} "PK\3\4", $head->(0);
        my $crc = $write->(sub { print {$f} $_[0] or die "$path: $!\n" });
        my $end = tell $f;
        seek($f, $at, 0);
        print {$f} "PK\3\4", $head->($crc);
        seek($f, $end, 0);
        $central .= "PK\1\2" . pack('vvvvvvVVVvvvvvVV', 45, 45, 0, 0, 0, 0x21, $crc, (0xffffffff) x 2,
            length $name, 28, 0, 0, 0, 0, 0xffffffff) . $name . pack('vvQ<Q<Q<', 1, 24, $size, $size, $at);
        $n++;
    };
    my $p = pickle();
    $member->('archive/data.pkl', length $p, sub { $_[0]->($p); return crc32($p) });
    for my $i (0 .. $#tensors) {
        my ($name, $rows, $cols) = @{$tensors[$i]};
        $member->("archive/data/$i", $rows * ($cols // 1) * 2, sub { return values_of($rank, $i, $_[0]) });
    }
    my $at = tell $f;
    my $end = $at + length $central;
    print {$f} $central, "PK\6\6", pack('Q<vvVVQ<Q<Q<Q<', 44, 45, 45, 0, 0, $n, $n, length $central, $at),
        "PK\6\7", pack('VQ<V', 0, $end, 1),
        "PK\5\6", pack('vvvvVVv', 0, 0, $n, $n, length $central, 0xffffffff, 0);
    close $f or die "$path: $!\n";
}

make_path("$dir/$o{iteration}");
open(my $latest, '>', "$dir/latest") or die "$dir/latest: $!\n";
print {$latest} "$o{iteration}\n";
close $latest;
open(my $config, '>', "$dir/config.json") or die "$dir/config.json: $!\n";
print {$config} qq({"name": "fake", "num_layers": $L, "hidden_size": $H, "inner_hidden_size": $I,
 "num_attention_heads": $A, "vocab_size": $V, "max_sequence_length": 2048}\n);
close $config;
write_rank(sprintf("$dir/$o{iteration}/mp_rank_%02d_model_states.pt", $_), $_) for 0 .. $R - 1;
