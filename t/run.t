#!/usr/bin/perl
# tools/run.sh, what make run does: a machine with a card that does not serve from it
# unless asked to, one without that does not serve; a large model that is given up while
# it loads; state that stays behind.  The card is t/fakecuda's.

use strict;
use warnings;
use Cwd qw(abs_path);
use FindBin;
use lib "$FindBin::Bin/lib";
use HTTP::Tiny;
use GLM::Engine;
use GLM::Test ();
use Test::More;

my $B = build_dir();
my $dir = scratch('b');
plan skip_all => 'the headers of CUDA are not here' unless -x "$B/glm-engine-fakecuda";
plan skip_all => 'no nginx' if system 'PATH=$PATH:/usr/sbin:/sbin command -v nginx >/dev/null';
mkdir $dir or die "$dir: $!\n";
symlink abs_path("$B/glm-engine-fakecuda"), "$dir/glm-engine" or die "glm-engine: $!\n";
symlink abs_path("$B/ngx_http_glm_module.so"), "$dir/ngx_http_glm_module.so" or die "module: $!\n";

for ([ {}, qr/a fake card: weights .*\n.*backend cuda, sm_90; weights fp16/s, 'a card' ],
    [ { FAKECUDA_DEVICES => 0 }, qr/backend cpu, /, 'no card' ])
{
    my ($env, $says, $what) = @$_;
    my $port = GLM::Test::port();
    my $e = start('sh', "$FindBin::Bin/../tools/run.sh", { env => { B => $dir, PORT => $port, %$env } });
    ok(wait_for(sub { $e->out =~ /^Ready: /m || !$e->alive }, 90), "$what: ready") or diag($e->err);
    like($e->err, $says, "$what: the log says so");
    my $r = HTTP::Tiny->new(timeout => GLM::Engine::patience(60))->post("http://127.0.0.1:$port/v1/completions",
        { content => '{"prompt": "English: Where is the file? German:", "temperature": 0}' });
    is($r->{status}, 200, "$what: a completion");
    like($r->{content}, qr/"text":"Wo ist die Datei\?"/, "$what: the demo's");
    is($e->stop('TERM', GLM::Engine::patience(60)), 0, "$what: ends");
    is(join(' ', glob "$dir/run*"), '', "$what: nothing is left");
}

# ---- a model that takes longer to load than a start may ----

unlink "$dir/glm-engine";
open my $f, '>', "$dir/glm-engine" or die "glm-engine: $!\n";
print $f "#!/bin/sh\nexec '", abs_path("$B/t/fake_engine"), "' --loading 4000 --socket \"\$4\"\n";
close $f;
chmod 0755, "$dir/glm-engine";
my $e = start('sh', "$FindBin::Bin/../tools/run.sh", { env => { B => $dir, PORT => GLM::Test::port(), WAIT => 2 } });
ok(wait_for(sub { $e->out =~ /^Ready: /m || !$e->alive }, 90), 'loading for longer than WAIT') or diag($e->err);
like($e->out, qr/^Ready: /m, 'ready in the end') or diag($e->err);
is($e->stop('TERM', GLM::Engine::patience(60)), 0, 'ends');
done_testing();
