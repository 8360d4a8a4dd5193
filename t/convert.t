#!/usr/bin/perl
# Weights that differ with the number of ranks, or a failure that leaves
# something that looks like a model: both would show here.

use warnings;
use File::Glob ":bsd_glob";     # no splitting at blanks of a path
use strict;

use Compress::Zlib ();
use Cwd qw(abs_path);
use File::Copy qw(copy);
use File::Path qw(make_path);
use Test::More;

use lib 't/lib';
use GLM::Convert;

my $data = abs_path('t/data');
my $mini = "$data/glm-mini-random";

# A copy of the mini model's files, to be spoilt.
sub copied {
    my ($tp) = @_;
    my $d = "$dir/src" . $made++;
    make_path("$d/1000");
    copy("$mini/$tp/latest", "$d/latest");
    copy($_, "$d/1000/") for glob("$mini/$tp/1000/*.pt");
    copy("$mini/config.json", "$d/config.json");
    return $d;
}

###############################################################################
# a very small model

# A stored zip in zip64 form; a member given as a number is that many bytes of
# hole, whose checksum is not told.
sub write_zip64 {
    my ($path, @members) = @_;
    open(my $f, '>:raw', $path) or die "$path: $!";
    my ($at, $central, $n) = (0, '', 0);
    while (my ($name, $bytes) = splice(@members, 0, 2)) {
        my $size = ref $bytes ? $$bytes : length $bytes;
        my $crc = ref $bytes ? 0 : Compress::Zlib::crc32($bytes);
        my $common = pack('vvvvvVVVvv', 45, 0, 0, 0, 0x21, $crc, (0xffffffff) x 2, length $name, 20);
        print {$f} "PK\3\4", $common, $name, pack('vvQ<Q<', 1, 16, $size, $size);
        $central .= "PK\1\2" . pack('v', 45) . substr($common, 0, 22) . pack('vvvvvVV', length $name,
            28, 0, 0, 0, 0, 0xffffffff) . $name . pack('vvQ<Q<Q<', 1, 24, $size, $size, $at);
        $at += 30 + length($name) + 20 + $size;
        ref $bytes ? seek($f, $at, 0) : print {$f} $bytes;
        $n++;
    }
    my $end = $at + length $central;
    print {$f} $central,
        "PK\6\6", pack('Q<vvVVQ<Q<Q<Q<', 44, 45, 45, 0, 0, $n, $n, length $central, $at),
        "PK\6\7", pack('VQ<V', 0, $end, 1),
        "PK\5\6", pack('vvvvVVv', 0, 0, $n > 0xffff ? 0xffff : $n, $n, length $central, 0xffffffff, 0);
    return close $f;
}

my %micro = (layers => 1, hidden => 8, heads => 2, inner => 12, vocab => 16);
my @plan = (
    ['word_embeddings.weight', 'rows', 16, 8],
    ['layers.0.input_layernorm.weight', 'copy', 8],
    ['layers.0.input_layernorm.bias', 'copy', 8],
    ['layers.0.attention.query_key_value.weight', 'rows', 24, 8],
    ['layers.0.attention.query_key_value.bias', 'rows', 24],
    ['layers.0.attention.dense.weight', 'cols', 8, 8],
    ['layers.0.attention.dense.bias', 'copy', 8],
    ['layers.0.post_attention_layernorm.weight', 'copy', 8],
    ['layers.0.post_attention_layernorm.bias', 'copy', 8],
    ['layers.0.mlp.dense_h_to_4h.weight', 'glu', 24, 8],
    ['layers.0.mlp.dense_h_to_4h.bias', 'glu', 24],
    ['layers.0.mlp.dense_4h_to_h.weight', 'cols', 8, 12],
    ['layers.0.mlp.dense_4h_to_h.bias', 'copy', 8],
    ['final_layernorm.weight', 'copy', 8],
    ['final_layernorm.bias', 'copy', 8],
);

# Whole tensors as lists of fp16 bits, all finite.
my $seed = 1;
my %whole = map {
    my ($name, undef, $rows, $cols) = @$_;
    ($name, [map {
        $seed = ($seed * 1103515245 + 12345) & 0x7fffffff;
        my $h = $seed >> 8 & 0xffff;
        ($h & 0x7c00) == 0x7c00 ? $h & 0x83ff : $h;
    } 1 .. $rows * ($cols // 1)]);
} @plan;

# The inverse of what glm-convert has to do, written from the reference.
sub part {
    my ($item, $rank, $ranks) = @_;
    my ($name, $cut, $rows, $cols) = @$item;
    my $c = $cols // 1;
    my @r = map { [@{$whole{$name}}[$_ * $c .. $_ * $c + $c - 1]] } 0 .. $rows - 1;
    if ($cut eq 'cols') {
        my $w = $c / $ranks;
        return ([map { @{$_}[$rank * $w .. ($rank + 1) * $w - 1] } @r], [$rows, $w]);
    }
    my $n = $cut eq 'copy' ? $rows : $rows / $ranks;
    my @take = $cut eq 'copy' ? (0 .. $rows - 1)
        : $cut eq 'rows' ? ($rank * $n .. ($rank + 1) * $n - 1)
        : ($rank * $n / 2 .. ($rank + 1) * $n / 2 - 1,
            $rows / 2 + $rank * $n / 2 .. $rows / 2 + ($rank + 1) * $n / 2 - 1);
    return ([map { @{$r[$_]} } @take], [$n, $cols // ()]);
}

sub half_value {
    my ($h) = @_;
    my ($e, $m) = ($h >> 10 & 31, $h & 1023);
    return ($h & 0x8000 ? -1 : 1) * ($e ? (1024 + $m) * 2 ** ($e - 25) : $m * 2 ** -24);
}

my %pack = (
    HalfStorage => sub { pack('v*', @_) },
    FloatStorage => sub { pack('f<*', map { half_value($_) } @_) },
    LongStorage => sub { pack('q<*', @_) },
    CharStorage => sub { pack('c*', map { $_ & 15 } @_) },
);

# Writes the micro model; edit->(name, rank, bits, shape) may change a part in
# place, or return its pickle and storage itself.
sub micro {
    my ($ranks, $class, $edit) = @_;
    my $d = "$dir/src" . $made++;
    make_path("$d/7");
    spew("$d/latest", "7\n");
    spew("$d/config.json", qq({"name":"micro","num_layers":$micro{layers},
        "hidden_size":$micro{hidden},"num_attention_heads":$micro{heads},
        "inner_hidden_size":$micro{inner},"vocab_size":$micro{vocab},"max_sequence_length":8,
        "model_parallel_size":$ranks,"own_field":[1,2]}));
    for my $rank (0 .. $ranks - 1) {
        my (@tensors, %storages);
        for my $item (@plan) {
            my ($bits, $shape) = part($item, $rank, $ranks);
            my $key = scalar @tensors;
            my ($pickle, $bytes) = $edit ? $edit->($item->[0], $rank, $bits, $shape) : ();
            if (defined $pickle && !ref $pickle && $pickle eq 'none') { next; }
            my $n = @$bits;
            $storages{$key} = $bytes // $pack{$class}->(@$bits);
            push @tensors, ["transformer.$item->[0]", $pickle ? $pickle->($key)
                : tensor($class, $key, $n, 0, $shape, @$shape == 2 ? [$shape->[1], 1] : [1])];
        }
        write_pt(sprintf('%s/7/mp_rank_%02d_model_states.pt', $d, $rank), \@tensors, \%storages);
    }
    return $d;
}

# All of the micro model as one rank has it: pickled tensors, storages.
sub whole_tensors {
    my (@tensors, %storages);
    for my $item (@plan) {
        my ($name, undef, @shape) = @$item;
        my $key = 'k_' . $name =~ s/\W/_/gr;
        $storages{$key} = pack('v*', @{$whole{$name}});
        push @tensors, ["transformer.$name", tensor('HalfStorage', $key, scalar @{$whole{$name}}, 0,
            [@shape], @shape == 2 ? [$shape[1], 1] : [1])];
    }
    return (\@tensors, \%storages);
}

# name => bits, read from a model directory
sub tensors {
    my ($d) = @_;
    my %t;
    for my $file (glob("$d/*.safetensors")) {
        my $bytes = slurp($file);
        my $n = unpack('Q<', $bytes);
        my $header = substr($bytes, 8, $n);
        while ($header =~ /"([^"]+)":\{"dtype":"F16","shape":\[[\d,]*\],"data_offsets":\[(\d+),(\d+)\]/g) {
            $t{$1} = [unpack('v*', substr($bytes, 8 + $n + $2, $3 - $2))];
        }
    }
    return \%t;
}

###############################################################################
# the same bits, whatever the cut

my @cfg = ('--config', "$mini/config.json");
my %sum;
for my $tp (qw(tp1 tp2 tp4)) {
    my ($status, $out) = convert('-q', @cfg, "$mini/$tp", "$dir/$tp");
    is($status, 0, "$tp is converted") or diag($out);
    is($out, '', "$tp: quiet");
    $sum{$tp} = sum("$dir/$tp");
}
is($sum{tp2}, $sum{tp1}, 'two ranks give the bits of one');
is($sum{tp4}, $sum{tp1}, 'four ranks too');
{
    my ($status) = convert('-q', '--no-checksums', @cfg, "$mini/tp1", "$dir/bare");
    is(sum("$dir/bare"), sum($mini), 'and they are the ones that tests use');
}
is_deeply([files("$dir/tp1")],
    [qw(config.json model-00001-of-00001.safetensors model.safetensors.index.json)],
    'no other files are left');

for my $ranks (1, 2) {
    for my $class (qw(HalfStorage FloatStorage)) {
        my $dst = fresh();
        my ($status, $out) = convert('-q', micro($ranks, $class), $dst);
        is($status, 0, "$class, $ranks ranks") or diag($out);
        is_deeply(tensors($dst), \%whole, "$class, $ranks ranks: every tensor is the whole one");
    }
}

my $config = slurp("$dir/out0/config.json");
like($config, qr/"num_layers": 1\b/, 'config.json has the original names');
like($config, qr/"own_field"/, 'fields of others stay');
unlike($config, qr/model_parallel_size/, 'how the source was cut does not');

{
    # a tensor that is a transposed slice of a larger shared storage
    my $dst = fresh();
    my ($status, $out) = convert('-q', micro(1, 'HalfStorage', sub {
        my ($name, undef, $bits) = @_;
        return unless $name =~ /attention\.dense\.weight/;
        my @big = (0) x 100;
        for my $r (0 .. 7) {
            $big[5 + $r + 9 * $_] = $bits->[8 * $r + $_] for 0 .. 7;
        }
        return (sub { tensor('HalfStorage', $_[0], 100, 5, [8, 8], [1, 9]) }, pack('v*', @big));
    }), $dst);
    is($status, 0, 'a transposed slice is read') or diag($out);
    is_deeply(tensors($dst), \%whole, 'as the tensor that it is');
}

{
    my $dst = fresh();
    my ($status) = convert('-q', '--shard-size', '300K', @cfg, "$mini/tp2", $dst);
    my @shards = glob("$dst/*.safetensors");
    is($status, 0, 'with small shards');
    cmp_ok(scalar @shards, '>', 3, 'several files');
    like(slurp("$dst/model.safetensors.index.json"), qr/"final_layernorm.bias": "model-0000\d-of-0000\d/,
        'and an index');
    is_deeply(tensors($dst), tensors("$dir/tp1"), 'the same tensors');
}

###############################################################################
# numbers that fp16 has or has not

sub one_value {
    my ($class, $bytes) = @_;
    return micro(1, 'HalfStorage', sub {
        return unless $_[0] eq 'final_layernorm.bias';
        return (sub { tensor($class, $_[0], 8, 0, [8], [1]) }, $bytes);
    });
}

{
    my $dst = fresh();
    my ($status) = convert('-q', one_value('FloatStorage', pack('f<*', 1 + 2 ** -11, 1 + 3 * 2 ** -11,
        -1 - 2 ** -11 - 2 ** -20, 65519, 2 ** -25, 3 * 2 ** -25, -0.0, 0.1)), $dst);
    is_deeply(tensors($dst)->{'final_layernorm.bias'},
        [0x3c00, 0x3c02, 0xbc01, 0x7bff, 0, 2, 0x8000, 0x2e66], 'fp32 is rounded to nearest, ties to even');
    $dst = fresh();
    ($status) = convert('-q', one_value('BFloat16Storage', pack('v*', 0x3f80, 0xc040, (0) x 6)), $dst);
    is_deeply(tensors($dst)->{'final_layernorm.bias'}, [0x3c00, 0xc200, (0) x 6], 'bf16');
}
fails('what rounds to infinity is refused', 'final_layernorm\.bias: the value 65520 has no fp16',
    one_value('FloatStorage', pack('f<*', (0) x 7, 65520)));
fails('nan in fp32 is refused', 'final_layernorm\.bias: the value -?nan has no fp16',
    one_value('FloatStorage', pack('f<*', (0) x 7, 9**9**9 / 9**9**9)));
fails('int64 is refused', 'final_layernorm\.bias is int64; only fp16',
    one_value('LongStorage', pack('q<*', (1) x 8)));
fails('int8 anywhere but in a weight is refused', 'final_layernorm\.bias is int8; only fp16',
    one_value('CharStorage', "\1" x 8));

###############################################################################
# quantised weights

sub quantisation { return slurp("$_[0]/config.json") =~ /"quantization": (\{.*?\n \})/s ? $1 : 'none'; }

for my $v (qw(int8-tp1 int8-tp2 int4-tp1 int4-tp2)) {
    my ($type, $ranks) = $v =~ /(\w+)-tp(\d)/;
    my ($own, $theirs) = (fresh(), fresh());
    my ($status, $out) = convert('-q', @cfg, '--quant', $type, '--quant-ranks', $ranks, "$mini/tp4", $own);
    is($status, 0, "$type for $ranks rank(s) is made") or diag($out);
    is(quantisation($own), qq({\n  "type": "$type",\n  "group_size": 0\n }), 'config.json says so');
    my ($src) = grep { -d } "$mini/$v", "../shared/reference/glm-mini-random/$v";
    SKIP: {
        skip "$v is not here", 4 unless defined $src;
        ($status, $out) = convert('-q', @cfg, $src, $theirs);
        is($status, 0, "the original's $v is converted") or diag($out);
        is(sum($theirs), sum($own), 'to the same bits');
        is(quantisation($theirs), quantisation($own), 'and the same config.json');
        ($status, $out) = convert(@cfg, '--quant', 'int4', $src, fresh());
        like($out, qr/^glm-convert: .*query_key_value\.weight is $type already; quantise from the fp16/m,
            'it is not quantised anew');
    }
    my $dims = $ranks == 1 ? 1 : 2;
    like(slurp((glob("$own/*.safetensors"))[0]), qr/mlp\.dense_4h_to_h\.weight_scale":\{"dtype":"F16","shape":\[256,$dims\]/,
        'a scale for each rank where they share the columns');
}

{
    my $dst = fresh();
    my ($status, $out) = convert('--quant', 'int4-g128', '--quant-except', '*.1.*=int4-g32',
        '--quant-except', 'layers.1.mlp.*=fp16', @cfg, "$mini/tp2", $dst);
    is($status, 0, 'groups, and exceptions') or diag($out);
    is(quantisation($dst) =~ s/\s//gr, '{"type":"int4","group_size":128,"tensors":{'
        . '"layers.1.attention.query_key_value.weight":"int4-g32",'
        . '"layers.1.attention.dense.weight":"int4-g32",'
        . '"layers.1.mlp.dense_h_to_4h.weight":"fp16","layers.1.mlp.dense_4h_to_h.weight":"fp16"}}',
        'are recorded, the last that fits wins');
    my $file = slurp((glob("$dst/*.safetensors"))[0]);
    like($file, qr/layers\.0\.attention\.dense\.weight":\{"dtype":"I8","shape":\[256,128\]/, 'bytes of int4');
    like($file, qr/layers\.0\.attention\.dense\.weight_scale":\{"dtype":"F16","shape":\[256,2\]/, 'scales of 128');
    like($file, qr/layers\.1\.attention\.dense\.weight_scale":\{"dtype":"F16","shape":\[256,8\]/, 'of 32');
    like($file, qr/layers\.1\.mlp\.dense_4h_to_h\.weight":\{"dtype":"F16"/, 'fp16');
    like($file, qr/word_embeddings\.weight":\{"dtype":"F16"/, 'the embedding is never quantised');
    like($out, qr/^needs 1\.5 MB of disk, 0\.7 MB of memory$/m, 'its needs are told');
}

{
    my $d = copied('tp1');
    my $json = slurp("$d/config.json");
    my $dst = fresh();
    spew("$d/config.json", $json =~ s/"fp16": true/"quantization": {"type": "int8"}/r);
    my ($status, $out) = convert('-q', $d, $dst);
    is($status, 0, 'a configuration that says int8, of fp16 tensors') or diag($out);
    is(quantisation($dst), 'none', 'the tensors are what counts');
}

fails('groups that do not divide', 'query_key_value\.weight has 8 columns: not a multiple of 32, which int4-g32 asks',
    '--quant', 'int4-g32', micro(1, 'HalfStorage'));
fails('ranks that do not divide', 'attention\.dense\.weight has 8 columns: not a multiple of 3, which --quant-ranks',
    '--quant', 'int8', '--quant-ranks', 3, micro(1, 'HalfStorage'));
fails('an odd part of a row', 'dense_4h_to_h\.weight: groups of 3 columns cannot be packed in pairs',
    '--quant', 'int4', '--quant-ranks', 4, micro(1, 'HalfStorage'));
fails('an exception for nothing', '--quant-except layers\.1\.\* fits no weight',
    '--quant', 'int4', '--quant-except', 'layers.1.*=fp16', micro(1, 'HalfStorage'));
fails('nan in a weight', 'attention\.dense\.weight: row 2, column 3 is not a finite number',
    '--quant', 'int8', micro(2, 'HalfStorage', sub {
        $_[2][8 + 3] = 0x7e01 if $_[0] =~ /attention\.dense\.weight/ && $_[1] == 0;
        return;
    }));

# A weight of the micro model in int4 by hand, where and as the caller says.
sub quantised_micro {
    my ($ranks, $weight_of, $scale) = @_;
    return micro($ranks, 'HalfStorage', sub {
        my ($name, $rank) = @_;
        return unless $name =~ /mlp\.dense_4h_to_h\.weight/ && $weight_of->($rank);
        my $n = 48 / $ranks;
        return (sub {
            my ($key) = @_;
            my $q = tensor('CharStorage', $key, $n, 0, [8, $n / 8], [$n / 8, 1]);
            # its scale is a storage of another tensor; only its being there matters
            return $scale ? $q . str("transformer.${name}_scale") . tensor('HalfStorage', 1, 8, 0, [8], [1]) : $q;
        }, "\1" x $n);
    });
}

fails('bytes without a scale', 'dense_4h_to_h\.weight_scale is missing', quantised_micro(1, sub { 1 }, 0));
fails('int8 in one file alone', 'mp_rank_01_\S+ transformer\.\S*dense_4h_to_h\.weight is float16, but int8 in',
    quantised_micro(2, sub { $_[0] == 0 }, 1));
fails('and the other way round', 'mp_rank_01_\S+ transformer\.\S*dense_4h_to_h\.weight is int8; only',
    quantised_micro(2, sub { $_[0] == 1 }, 1));
fails('a scale beside fp16', 'dense_4h_to_h\.weight is float16, but has a scale', do {
    my $d = micro(1, 'HalfStorage');
    my ($tensors, $storages) = whole_tensors();
    push @$tensors, ['transformer.layers.0.mlp.dense_4h_to_h.weight_scale',
        tensor('HalfStorage', 'k_final_layernorm_bias', 8, 0, [8], [1])];
    write_pt("$d/7/mp_rank_00_model_states.pt", $tensors, $storages);
    $d;
});
{
    my $dst = fresh();
    my ($status, $out) = convert('-q', quantised_micro(2, sub { 1 }, 1), $dst);
    is($status, 0, 'a source with one quantised weight') or diag($out);
    like(quantisation($dst) =~ s/\s//gr, qr/"type":"int4","group_size":0,"tensors":\{.*dense\.weight":"fp16"/,
        'records the others as fp16');
}

###############################################################################
# what can be wrong with a source

{
    my $d = copied('tp4');
    unlink "$d/1000/mp_rank_01_model_states.pt";
    fails('a rank file is missing', 'mp_rank_01_model_states\.pt: missing, but rank 3 is there', $d);
    unlink "$d/1000/mp_rank_02_model_states.pt";
    unlink "$d/1000/mp_rank_03_model_states.pt";
    fails('all ranks but one are missing', 'mp_rank_01_model_states\.pt: missing: .* cut for 4 ranks, and there are 1', $d);
    unlink "$d/1000/mp_rank_00_model_states.pt";
    fails('no rank file at all', '/1000: no mp_rank_00_model_states\.pt in it', $d);
    rmdir "$d/1000";
    fails('no folder of the iteration', '/1000: No such file or directory', $d);
    unlink "$d/latest";
    fails('no latest', '/latest: No such file', $d);
    spew("$d/latest", '../1000');
    fails('latest points elsewhere', '/latest: not the name of a folder', $d);
    spew("$d/latest", "\n");
    fails('latest is empty', '/latest: not the name of a folder', $d);
    spew("$d/latest", 'a/b');
    fails('latest is a path', '/latest: not the name of a folder', $d);
    unlink "$d/config.json";
    fails('no config.json', '/config\.json: no such file; --config names one', $d);
    fails('no source', 'config\.json: no such file', "$dir/none");
}

for my $tp (qw(tp1 tp2)) {
    my $d = copied($tp);
    my $last = (sort glob("$d/1000/*.pt"))[-1];
    my $bytes = slurp($last);
    for my $part (0.999, 0.5, 0.01) {
        spew($last, substr($bytes, 0, int(length($bytes) * $part)));
        fails("$tp: a file cut to $part", 'mp_rank_0\d_model_states\.pt[,:] .*cut short', $d);
    }
    spew($last, '');
    fails("$tp: an empty file", '0 bytes are no checkpoint file', $d);
}

{
    my $d = copied('tp2');
    my $file = "$d/1000/mp_rank_01_model_states.pt";
    my $bytes = slurp($file);
    my $at = int(length($bytes) / 2);
    substr($bytes, $at, 1) = chr(ord(substr($bytes, $at, 1)) ^ 1);
    spew($file, $bytes);
    my ($status, $out) = convert('-q', $d, fresh());
    my ($from, $to) = $out =~ m{^glm-convert: \Q$file\E, byte (\d+) to byte (\d+): CRC error: the file is damaged \(in transformer\.};
    ok($status eq '1' && defined $to && $from <= $at && $at < $to, 'a changed byte is named') or diag($out);
}

{
    my $d = copied('tp2');
    my $json = slurp("$d/config.json");
    spew("$d/config.json", $json =~ s/"inner_hidden_size": 512/"inner_hidden_size": 1024/r);
    fails('a shape is not that of the configuration',
        'mp_rank_00_model_states\.pt: transformer\.layers\.0\.mlp\.dense_h_to_4h\.weight has the shape '
        . '\[512, 256\], the configuration asks for \[1024, 256\]', $d);
    spew("$d/config.json", $json =~ s/"num_layers": 2/"num_layers": 3/r);
    fails('a layer is missing', 'transformer\.layers\.2\.input_layernorm\.weight is missing', $d);
    spew("$d/config.json", $json =~ s/"num_layers": 2/"num_layers": 0/r);
    fails('a configuration that is none', 'config\.json: "num_layers" is 0', $d);
}

fails('a tensor is missing in one file',
    'mp_rank_01_model_states\.pt: transformer\.layers\.0\.attention\.dense\.bias is missing',
    micro(2, 'HalfStorage', sub {
        return $_[0] eq 'layers.0.attention.dense.bias' && $_[1] == 1 ? 'none' : ();
    }));
fails('a tensor has other dimensions',
    'final_layernorm\.bias has the shape \[8, 1\], the configuration asks for \[8\] \(rank 0 of 1\)',
    micro(1, 'HalfStorage', sub {
        return unless $_[0] eq 'final_layernorm.bias';
        return (sub { tensor('HalfStorage', $_[0], 8, 0, [8, 1], [1, 1]) });
    }));
fails('values are missing in one file', 'final_layernorm\.weight: its storage \d+ has 3 bytes of 16',
    micro(1, 'HalfStorage', sub {
        return unless $_[0] eq 'final_layernorm.weight';
        return (sub { tensor('HalfStorage', $_[0], 8, 0, [8], [1]) }, 'abc');
    }));
fails('a storage is not in the file', 'final_layernorm\.weight: its values \(storage none\) are not in the file',
    micro(1, 'HalfStorage', sub {
        return unless $_[0] eq 'final_layernorm.weight';
        return (sub { tensor('HalfStorage', 'none', 8, 0, [8], [1]) });
    }));
fails('a file of another kind', 'pickle byte \d+: global "__builtin__\.print" is refused', do {
    my $d = micro(1, 'HalfStorage');
    copy("$data/pt-samples/refuse-global.pt", "$d/7/mp_rank_00_model_states.pt");
    $d;
});

{
    # what nobody needs is skipped, and said
    my $d = micro(1, 'HalfStorage');
    my ($bits) = ("\0\0" x 4);
    my ($whole, $values) = whole_tensors();
    my @tensors = @$whole;
    my %storages = %$values;
    push @tensors, ['transformer.extra.weight', tensor('HalfStorage', 'x', 4, 0, [4], [1])],
        ['transformer.layers.0.attention.rotary_emb.inv_freq', tensor('HalfStorage', 'x', 4, 0, [4], [1])];
    $storages{x} = $bits;
    write_pt("$d/7/mp_rank_00_model_states.pt", \@tensors, \%storages, str('iteration') . int4(9));
    my $dst = fresh();
    my ($status, $out) = convert($d, $dst);
    is($status, 0, 'unknown tensors are no error') or diag($out);
    like($out, qr/^skipped: unknown tensor transformer\.extra\.weight$/m, 'an unknown tensor is told');
    like($out, qr/^skipped: .*iteration/m, 'other keys too');
    unlike($out, qr/inv_freq/, 'the rotary table is nothing unknown');
    like($out, qr/^100%/m, 'progress in plain lines');
    unlike($out, qr/[\r\e]/, 'no bar without a terminal');
    like($out, qr/^wrote \Q$dst\E: 15 tensors/m, 'what was written');
    is_deeply(tensors($dst), \%whole, 'the rest is there');
}

{
    # members and offsets of more than 4 GiB
    my $d = micro(1, 'HalfStorage');
    my ($tensors, $storages) = whole_tensors();
    my $hole = 5 << 30;
    my $long = sub { "\x8a\x08" . pack('q<', $_[0]) };
    push @$tensors, ['transformer.huge', "ctorch._utils\n_rebuild_tensor_v2\n"
        . tuple(tuple(str('storage'), "ctorch\nHalfStorage\n", str('huge'), str('cpu'), $long->($hole / 2)) . 'Q',
            int4(0), tuple($long->($hole / 2)), tuple(int4(1)), "\x89", "ccollections\nOrderedDict\n)R") . 'R'];
    SKIP: {
        my $path = "$d/7/mp_rank_00_model_states.pt";
        write_zip64($path, 'a/data/huge', \$hole, (map { ("a/data/$_", $storages->{$_}) } sort keys %$storages),
            'a/data.pkl', pickled($tensors)) or skip 'no room for a large file with a hole', 3;
        skip 'a file system without holes', 3 if (stat $path)[12] * 512 > 1 << 30;
        my $dst = fresh();
        my ($status, $out) = convert($d, $dst);
        is($status, 0, 'a file of more than 4 GiB') or diag($out);
        like($out, qr/unknown tensor transformer\.huge/, 'with a large tensor in it');
        is_deeply(tensors($dst), \%whole, 'the tensors behind it are read');
    }
    unlink glob("$d/7/*");
}

{
    my $dst = fresh();
    my ($status, $out) = convert(micro(2, 'HalfStorage', sub {
        my ($name, $rank, $bits) = @_;
        $bits->[0] ^= 1 if $name eq 'final_layernorm.bias' && $rank == 1;
        return;
    }), $dst);
    is($status, 0, 'copies that differ are no error');
    like($out, qr/^final_layernorm\.bias: ranks 0 and 1 have different values/m, 'but told');
    is_deeply(tensors($dst), \%whole, 'rank 0 wins');
}

###############################################################################
# the output directory

{
    # a limit on file sizes ends it in the middle of writing, with no chance to tidy up
    my $dst = fresh();
    my $dead = system('/bin/sh', '-c', "ulimit -c 0; ulimit -f 500; exec '$bin' -q --config"
        . " '$mini/config.json' '$mini/tp1' '$dst' 2>/dev/null");
    isnt($dead & 127, 0, 'killed while writing');
    my @left = files($dst);
    ok(@left > 0 && !grep({ !/\.tmp$/ } @left), 'only temporary names are left') or diag("@left");
    my ($status, $out) = convert('-q', @cfg, "$mini/tp1", $dst);
    is($status, 0, 'the next conversion goes through') or diag($out);
    is_deeply([files($dst)], [files("$dir/tp1")], 'and leaves no remains');
    is(sum($dst), $sum{tp1}, 'with the right bits');

    spew("$dst/note", 'mine');
    ($status, $out) = convert('-q', @cfg, "$mini/tp1", $dst);
    is($status, 1, 'a model is not replaced');
    like($out, qr/^glm-convert: \Q$dst\E: has a \S+ already; --force replaces/, 'unasked');

    $dead = system('/bin/sh', '-c', "ulimit -c 0; ulimit -f 500; exec '$bin' -q --force --config"
        . " '$mini/config.json' '$mini/tp2' '$dst' 2>/dev/null");
    isnt($dead & 127, 0, 'killed while replacing');
    is(sum($dst), $sum{tp1}, 'the old model is still whole');
    ok(-e "$dst/config.json", 'with its config.json');

    ($status) = convert('-q', '--force', micro(1, 'HalfStorage'), $dst);
    is($status, 0, '--force replaces it');
    is_deeply(tensors($dst), \%whole, 'by the new one');
    ok(-e "$dst/note", 'other files stay');
    ok(!grep({ /\.tmp$/ } files($dst)), 'nothing temporary stays');
}

{
    my $src = micro(1, 'HalfStorage');
    my ($status, $out) = convert('-q', '-f', $src, $src);
    is($status, 1, 'SRC is not written to') or diag($out);
    ok(slurp("$src/config.json") =~ /own_field/ && !glob("$src/*.safetensors"), 'SRC is as it was');

    my $dst = fresh();
    ($status, $out) = convert('--dry-run', $src, $dst);
    is($status, 0, 'a dry run');
    like($out, qr/^would write .* from 1 rank file$/m, 'says what it would do');
    ok(!-e $dst, 'and does not');

    spew("$src/tokenizer.model", 'pieces');
    spew("$src/tokenizer_config.json", '{}');
    ($status) = convert('-q', $src, $dst);
    is(slurp("$dst/tokenizer.model") . slurp("$dst/tokenizer_config.json"), 'pieces{}',
        "the tokenizer's files come along");
    make_path("$dir/tok");
    spew("$dir/tok/ice_text.model", 'ice');
    spew("$dir/tok/tokenizer_config.json", '{"a":1}');
    ($status) = convert('-q', '-f', '--tokenizer', "$dir/tok", $src, $dst);
    ok(slurp("$dst/ice_text.model") eq 'ice' && !-e "$dst/tokenizer.model", 'or from elsewhere');
    fails('a directory without a tokenizer', 'no tokenizer_config\.json in it', '--tokenizer', $mini, $src);
}

SKIP: {
    skip 'root writes everywhere', 1 if $> == 0;
    make_path("$dir/locked", { mode => 0555 });
    my ($status, $out) = convert('-q', micro(1, 'HalfStorage'), "$dir/locked/m");
    ok($status eq '1' && $out =~ /mkdir\(\) failed/, 'no right to write');
}

###############################################################################
# usage

for my $args ([], ['a'], ['a', 'b', 'c'], ['--frob', 'a', 'b'], ['--shard-size', '5X', 'a', 'b'],
    ['--shard-size', '0', 'a', 'b'], ['--shard-size', '99999999999999999999', 'a', 'b'], ['--config'],
    ['--quant', 'int5', 'a', 'b'], ['--quant', 'fp16', 'a', 'b'], ['--quant-ranks', 2, 'a', 'b'],
    ['--quant', 'int8', '--quant-ranks', 0, 'a', 'b'], ['--quant', 'int8', '--quant-ranks', '2x', 'a', 'b'],
    ['--quant-except', '*=fp16', 'a', 'b'], ['--quant', 'int8', '--quant-except', '*', 'a', 'b'],
    ['--quant', 'int8', '--quant-except', '*=int3', 'a', 'b'])
{
    my ($status, $out) = convert(@$args);
    is($status, 2, "usage: @$args");
    like($out, qr/--help/, 'points at the help') if @$args == 0;
    like($out, qr/unrecognized option '--frob'/, 'names what it does not know') if "@$args" =~ /frob/;
}
{
    my ($status, $out) = convert('--help');
    is($status, 0, '--help');
    like($out, qr/^usage: glm-convert \[options\] SRC DST$/m, 'tells how it is used');
}

done_testing();
