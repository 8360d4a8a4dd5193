# A client of the world, unchanged, that our answers break.  make test-clients runs it:
# the downloads are larger than those of make test.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/../lib";
use GLM::Test;

# Script, what it needs; a venv for each set.
my @CLIENTS = (
    [ 'retry.py', 'langchain-openai==1.7.4', 'openai==3.57.0' ],
    [ 'langchain.py', 'langchain-openai==1.7.4', 'openai==3.57.0' ],
    [ 'litellm_.py', 'litellm==1.110.2' ],
    [ 'lm_eval_.py', 'lm-eval[api]==0.4.13' ],
);

# No model, price list or data set from a hub.
@ENV{qw(LITELLM_LOCAL_MODEL_COST_MAP HF_HUB_OFFLINE HF_DATASETS_OFFLINE PYTHONDONTWRITEBYTECODE)} = ('True', 1, 1, 1);

# The Python of a venv with these packages, or why there is none.
sub python {
    my ($t, @packages) = @_;
    (my $name = $packages[0]) =~ s{[=\[].*}{};
    (my $mark = join '-', @packages) =~ s/[^\w.-]+/_/g;
    my $venv = "$t->{tree}/build/venv-$name";
    return "$venv/bin/python" if -e "$venv/$mark";
    mkdir "$t->{tree}/build";
    my $log = "$t->{dir}/$name.out";
    my $run = sub { system("$_[0] >>'$log' 2>&1") == 0 };
    my $list = join ' ', map { "'$_'" } @packages;
    if ($run->("timeout 120 python3 -m venv --clear '$venv'")
        && $run->("timeout 600 '$venv/bin/python' -m pip install -q --disable-pip-version-check $list"))
    {
        open my $f, '>', "$venv/$mark" or die "$mark: $!\n";
        return "$venv/bin/python";
    }
    return (undef, (split /\n/, $t->read_file($log))[-1] // 'unknown');
}

sub script {
    my ($t, $file, $python, $started) = @_;
    local $ENV{HF_HOME} = "$t->{dir}/hf";
    open my $out, '-|', "timeout 300 '$python' '$FindBin::Bin/$file' http://127.0.0.1:$t->{port} 2>&1" or die "$file: $!\n";
    $started->() if $started;
    my ($n, $rest) = (0, '');
    while (<$out>) {
        if (/^(ok|not ok|skip)\t([^\t]*)\t(.*)$/) {
            $n++;
            my ($what, $name, $why) = ($1, $2, $3);
            SKIP: {
                skip "$file: $name: $why", 1 if $what eq 'skip';
                ok($what eq 'ok', "$file: $name") or diag(substr $why, 0, 800);
            }
        } else {
            $rest .= $_;
        }
    }
    close $out;
    ok($? == 0 && $n, "$file ends well") or diag(substr $rest, -2500);
}

for my $c (@CLIENTS) {
    my ($file, @packages) = @$c;
    SKIP: {
        my $t = GLM::Test->new(absent => $file eq 'retry.py');
        my ($python, $why) = python($t, @packages);
        $python or skip "$file: $why", 1;
        $t->engine->run;
        if ($file eq 'retry.py') {
            $t->allow(qr/glm/);
            script($t, $file, $python, sub {
                my $refused = wait_for { $t->read_file('error.log') =~ /glm request ends with 503/ } 30;
                ok($refused, 'a 503 first');
                $t->start_engine;
            });
        } else {
            $t->ready;
            script($t, $file, $python);
        }
        $t->idle(5, "$file: nothing is left");
        $t->finish;
    }
}
done_testing;
