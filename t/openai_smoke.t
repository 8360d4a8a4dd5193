# The official Python client, unchanged, that cannot talk to us any more.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $VERSION = '3.57.0';

plan skip_all => 'sanitized run' if $ENV{GLM_SANITIZED};

my $t = GLM::Test->new;
my $venv = "$t->{tree}/build/venv-openai";
my $mark = "$venv/openai-$VERSION";
if (!-e $mark) {
    mkdir "$t->{tree}/build";
    my $log = "$t->{dir}/venv.out";
    my $py = sub { system("$_[0] >>'$log' 2>&1") == 0 };
    $py->("timeout 120 python3 -m venv --clear '$venv'")
        && $py->("timeout 240 '$venv/bin/python' -m pip install -q --disable-pip-version-check openai==$VERSION")
        && do { open my $f, '>', $mark }
        or plan skip_all => "no openai $VERSION: " . ((split /\n/, $t->read_file($log))[-1] // 'unknown');
}

$t->engine->run->ready;
open my $out, '-|', "'$venv/bin/python' '$FindBin::Bin/openai_smoke.py' http://127.0.0.1:$t->{port} 2>&1"
    or die "python: $!\n";
my ($n, $rest) = (0, '');
while (<$out>) {
    if (/^(not )?ok\t([^\t]*)\t(.*)$/) {
        $n++;
        ok(!$1, "openai: $2") or diag(substr $3, 0, 500);
    } else {
        $rest .= $_;
    }
}
close $out;
is($?, 0, 'the script ends well') or diag(substr $rest, -1500);
is($n, 27, 'and made all its checks');

$t->idle(5, 'nothing is left');
$t->done;
