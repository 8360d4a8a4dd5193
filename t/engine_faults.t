#!/usr/bin/perl
# A card that fails (t/fakecuda): an engine that goes on, a token after the fault, a
# request that never hears of it, or an exit status that does not say which it was.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Engine;
use Test::More;

my $B = build_dir();
my ($engine, $glm) = ("$B/glm-engine-fakecuda", "$B/glm");
plan skip_all => 'the headers of CUDA are not here' unless -x $engine;

my $path = scratch('e.sock');
my @engine = ($engine, '--socket', $path, '--model', 'models/demo', '--backend', 'cuda');

sub serving {
    my ($env, @o) = @_;
    local @ENV{keys %$env} = values %$env;
    my $e = start(@engine, @o);
    $e->says(qr/serving/, GLM::Engine::patience(60)) or die $e->err;
    return $e;
}

sub ended { my ($e) = @_; return wait_for { !$e->alive } GLM::Engine::patience(60) }

my $right;

# ---- a card that works ----

my $e = serving({});
like($e->err, qr/a fake card: weights .* KV .* tokens in fp16/, 'the card, and what it will hold');
my ($status, $out, $err) = run([ $glm, 'complete', '--socket', $path, '--max-tokens', 8, '--min-tokens', 8, 'the' ]);
is($status, 0, 'a completion');
$right = $out;
ok(length $right > 1, 'with text');
is($e->stop('TERM', GLM::Engine::patience(60)), 0, 'ends with 0');

# ---- at start ----

sub refused {
    my ($env, $want, $says, $what, @o) = @_;
    local @ENV{keys %$env} = values %$env;
    my ($s, undef, $text) = run([ @engine, @o ]);
    is($s, $want, "$what: status");
    like($text, $says, "$what: is told");
}
refused({ FAKECUDA_MEMORY => 30_000_000 }, 3, qr/does not fit a fake card: \d+ bytes of weights.* there are 30000000 /,
    'too small a card');
refused({ GLM_GPU_FAULT => 'cudaMalloc,1,2' }, 3, qr/cannot allocate \d+ of \d+ bytes.*out of memory/, 'no memory after all');
refused({ GLM_GPU_FAULT => 'pack,3,700' }, 4, qr/loading weights failed: pack: an illegal memory/, 'an error while loading');
refused({ FAKECUDA_DEVICES => 0 }, 1, qr/--backend cuda: no CUDA device/, 'no card');

# ---- in a step, with four streams under way ----

for ([ { GLM_GPU_FAULT => 'cudaGraphLaunch,30,700' }, 4, qr/the device failed: cudaGraphLaunch: an illegal/, 'a sticky error' ],
    [ { GLM_GPU_FAULT => 'astray,30,0' }, 4, qr/the device failed: waiting for the device: an illegal memory/, 'one of the card' ],
    [ { GLM_GPU_FAULT => 'cudaGraphLaunch,41,100' }, 5, qr/the device failed: cudaGraphLaunch: no CUDA-capable/, 'a card taken away' ],
    [ { GLM_GPU_FAULT => 'hang,30,0' }, 6, qr/the device failed: waiting for the device: not done after 1 s/, 'a kernel that never ends' ],
    [ { GLM_GPU_FAULT => 'nan,30,0' }, 7, qr/the device failed: logits: NaN or infinity in 1 of \d+ rows; row \d+: token \d+, slot \d+/, 'NaN in a row' ])
{
    my ($env, $want, $says, $what) = @$_;
    my $e = serving({ %$env }, '--gpu-timeout', 1);
    my @c = map { start($glm, 'complete', '--socket', $path, '--max-tokens', 900, '--min-tokens', 900,
        'the') } 1 .. 4;
    ok(ended($e), "$what: the engine ends");
    is($e->ended, $want, "$what: with its own status");
    like($e->err, $says, "$what: says which");
    my ($told, $wrong) = (0, 0);
    for my $c (@c) {
        wait_for { !$c->alive } GLM::Engine::patience(60);
        $told++ if $c->ended ne '0' && $c->err =~ /engine failed/i;
        my $text = $c->out =~ s/\n\z//r;
        my $same = length $text < length $right ? length $text : length($right) - 1;
        $wrong++ if substr($text, 0, $same) ne substr($right, 0, $same);
    }
    is($told, 4, "$what: every request is told");
    is($wrong, 0, "$what: no wrong token");
}

# ---- in a step, when the engine is told to end before anybody knows ----

for my $signal ('INT', 'TERM') {
    my $e = serving({ GLM_GPU_FAULT => 'hang,30,0' }, '--gpu-timeout', 2);
    my $c = start($glm, 'complete', '--socket', $path, '--max-tokens', 900, '--min-tokens', 900, 'the');
    ok($e->says(qr/fakecuda: hangs/, GLM::Engine::patience(60)), 'a step hangs');
    is($e->stop($signal, GLM::Engine::patience(60)), 6, "SIG$signal then: with the status of that");
    like($e->err, qr/the device failed: waiting for the device: not done after 2 s/, 'says so');
    isnt($c->ended(GLM::Engine::patience(60)), 0, 'the request is told');
}
done_testing();
