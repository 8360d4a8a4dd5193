#!/usr/bin/perl
# tools/run.sh, what make run does: a machine with a card that does not serve from it
# unless asked to, one without that does not serve; state that stays behind.  The card
# is t/fakecuda's.

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
done_testing();
