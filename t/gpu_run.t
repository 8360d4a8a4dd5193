#!/usr/bin/perl
# t/gpu/run.sh without a card: a mistake of the shell's that would wait for one; a failure
# that the status does not tell, or that stops other parts; a table that reads its logs
# wrong.  The engine is the one over t/fakecuda, all other programs are stubs.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Cwd qw(abs_path);
use GLM::Engine;
use Test::More;

my $B = build_dir();
plan skip_all => 'the headers of CUDA are not here' unless -x "$B/glm-engine-fakecuda";
my $tree = abs_path("$FindBin::Bin/..");
my $dir = scratch('gpu');
my $out = "$dir/out";

sub put {
    my ($name, $text) = @_;
    open my $f, '>', "$dir/$name" or die "$dir/$name: $!\n";
    print $f $text;
    close $f;
    chmod 0755, "$dir/$name";
}

sub script { my ($name, $text) = @_; put($name, "#!/bin/sh\n$text") }
sub link_to { my ($from, $to) = @_; symlink abs_path($from), "$dir/$to" or die "$to: $!\n" }

mkdir "$dir$_" or die "$dir$_: $!\n" for '', '/data', '/data/models', '/path';
link_to("$tree/models/demo", 'data/models/demo');
link_to("$tree/t/data/glm-130b-int4", 'data/models/glm-130b-int4');
link_to("$B/glm-engine-fakecuda", $_) for qw(glm-engine glm-engine-faults);
link_to("$B/glm", 'glm');
my $pass = "echo 'ok 1 - a'\necho 'ok 2 # SKIP b'\necho 1..2\n";
my ($truth) = slurp("$tree/t/gpu/run.sh") =~ /for p in (forward [^;]*);/;
script($_, $pass) for qw(glm-gputest glm-prefilltest glm-gpusample model_faults), split ' ', $truth;
script('float64', "[ \"\$*\" = '12288 96 32768 90 80' ] || exit 3\necho 'ok 1 - x, layer 0: 3e-4 from float64'\necho 1..1\n");
script('path/compute-sanitizer', <<'END');
while [ $# -gt 0 ]; do
    case $1 in
    --tool) tool=$2; shift 2 ;;
    --error-exitcode) shift 2 ;;
    *) break ;;
    esac
done
echo "========= $tool SUMMARY: 0 errors"
[ "$GLM_SANITIZED" = "$tool" ] || exit 8
exec "$@"
END
script('path/nvidia-smi', "echo a card\n");

# As an H200 said it.
script('glm-bench', <<'END');
[ "$1" != kernels ] || exec "$(dirname "$0")/kernels"
[ "$1" != load ] || exec "$(dirname "$0")/load" "$@"
case ${GLM_CUDA_ARCH-} in
80) echo '   1 rows     30.801 ms a step        32.5 tokens/s'
    echo ' 512 prompt  596.582 ms              858.2 tokens/s' ;;
*)  cat <<X
2026/11/30 04:17:49 [notice] 726: backend cuda, sm_90; weights int4-g128, 69.12 GB
sm_90, loaded in 2.66 s
   1 rows     19.111 ms a step        52.3 tokens/s
   8 rows     20.394 ms a step       392.3 tokens/s
  16 rows     26.310 ms a step       608.1 tokens/s
  32 rows     31.780 ms a step      1006.9 tokens/s
  64 rows     43.369 ms a step      1475.7 tokens/s
 512 prompt  155.995 ms             3282.0 tokens/s
2048 prompt 1482.679 ms             1381.3 tokens/s
X
esac
END
script('load', <<'END');
[ "$*" = "load --dir ${0%/*}/load.model --remove" ] && exec rmdir "${0%/*}/load.model"
[ "$*" = "load --backend cuda --dir ${0%/*}/load.model --drop-caches --seconds 60" ] || exit 2
mkdir "${0%/*}/load.model"
cat <<X
                               GB         s     GB/s  of slower   wanted
raw reads                   18.80     4.100     4.59
pinned copies               18.80     0.380    49.47
load, cold                  18.80     4.300     4.37     95.3 %     85 %
load, file cached           18.80     4.200     4.48     97.6 %     85 %
whole start, cold           18.80     5.300     3.55     77.4 %

67 GB at these rates, extrapolated: 15.3 s cold, 15.0 s with the file cached
X
END
script('kernels', <<'END');
cat <<X
NVIDIA H200, 132 SMs, sm_90 kernels; read peak 4513 GB/s, KV 15.1 GB
attn_row, 96 heads x 128: us a layer (% of read peak)
  rows x context               int8               fp16
        1 x 2048       19.0 (59.8)        28.9 (77.3) 
        8 x 2048      103.4 (93.5)       200.4 (89.1) 
       64 x  512      231.5 (78.4)       389.0 (91.9) 
* fits in L2
70 layers' matrices + int8 head, 67.25 GB, floor 14.90 ms
  rows        ms   % floor    rested    wanted
     1     18.00      82.8     17.90      22.5
whole steps, 70 layers, int8 head, int8 KV, every row at context 128
  rows   ms/step   tokens/s  floor ms   % floor    rested    wanted
     1     19.55       51.2     14.95      76.5     18.59      23.9
    64     42.36     1510.8     18.07      42.7     42.10      40.5
a pass of 512 rows, us a kernel (matrices: TFLOP/s), by rows a block
    64     596.9 ( 389)     205.6 ( 376)
X
END

sub run_sh {
    my (@parts) = @_;
    local @ENV{qw(OUT PATH FAKECUDA_MEMORY)} = ($out, "$dir/path:$ENV{PATH}", 90_000_000_000);
    my ($status, $text, $err) = run([ 'sh', "$dir/run.sh", @parts ], seconds => GLM::Engine::patience(300));
    is($err, '', "nothing on stderr (@parts)");
    return ($status, $text);
}
link_to("$tree/t/gpu/run.sh", 'run.sh');

# ---- everything ----

my ($status, $text) = run_sh();
is($status, 0, 'all parts pass') or diag($text);
like($text, qr/^gpu: all passed\n\z/m, 'and say so');
unlike($text, qr/^not ok/m, 'nothing failed');
ok(-s "$out/$_.txt", "$_ has its own output") for qw(tests truth wire faults steps load sanitize bench table);
ok(!-e "$dir/load.model", 'the model that was loaded is gone');
like($text, qr/^ok - sample: 2 passed, 1 of them skipped, 0 failed$/m, 'skips are told');
is(scalar(() = $text =~ /^ok - sm_(?:90|80), wire: /mg), 12, 'six questions over the wire for each architecture');
is(scalar(() = $text =~ /^ok - .*: of 4 requests under way, 4 are told, 4 have /mg), 5, 'faults, five with requests under way');
is(scalar(() = $text =~ /^ok - compute-sanitizer /mg), 19, 'sanitizers: every program, both architectures');

my ($table) = $text =~ /^# table.*?\n(.*?)^gpu:/ms;
like($table, qr/^NVIDIA H200, .*read peak 4513/m, 'table: the card');
like($table, qr/^ +1 +19\.11 +52\.3 +23\.9 +14\.95 +78\.2 +28\.1 +30\.80  reached$/m, 'a row with all columns');
like($table, qr/^ +16 +26\.31 +608\.1 +25\.6 +- +- +29\.1 +-  missed$/m, 'a row without a floor');
like($table, qr/^prefill of  512 tokens: 0\.156 s, wanted 0\.23, sm_80 0\.597  reached$/m, 'prefill');
like($table, qr/^prefill of 2048 tokens: 1\.483 s, wanted 0\.90, sm_80 -  missed$/m, 'a longer one');
like($table, qr/^attention of 8 x 2048: 93\.5 % of read peak in int8, 89\.1 in fp16, wanted 90  reached$/m, 'attention');
like($table, qr/^load, cold: 4\.37 GB\/s, 95\.3 % of the slower of reads and copies \(cached 97\.6\), wanted 85; /m, 'loading');
like($table, qr/; 67 GB in 15\.3 s, extrapolated  reached$/m, 'and of the whole model');
like($table, qr/^KV room: 9200 tokens of int8 on an H100 80GB, wanted 8960 \(\d+ on this card\)  reached$/m, 'KV room');

# ---- failures ----

script('glm-gpusample', "echo 'not ok 1 - a row differs'\necho 1..1\nexit 1\n");
script('glm-prefilltest', "echo 'ok 1 - a'\n");     # ends early, with 0
script('glm-gputest', "echo '1..0 # SKIP no card'\n");
($status, $text) = run_sh('tests', 'sanitize', 'table');
is($status, 1, 'a failure is the status');
like($text, qr/^not ok 1 - a row differs$/m, 'its line is shown');
like($text, qr/^not ok - kernels: .*\(status skipped\)\nnot ok - prefill: .*\(status plan\)\n.*not ok - sample: .*\(status 1\)$/ms, 'others go on');
like($text, qr/^not ok - compute-sanitizer memcheck sm_90 glm-gpusample/m, 'and under a sanitizer');
like($text, qr/^KV room: .*^not ok - kernels.*^gpu: FAILED\n\z/ms, 'the table comes all the same, then what failed');

unlink "$out/$_.log" for qw(steps steps-80 load bench plan plan-h100);
($status, $text) = run_sh('table');
is($status, 0, 'a table of nothing');
like($text, qr/^ +1 +- +- +23\.9 +- +- +28\.1 +-  $/m, 'has dashes');
($status, $text) = run_sh('speed');
is($status, 1, 'an unknown part');
like($text, qr/^not ok - there is no part "speed"/m, 'is named');

done_testing();
