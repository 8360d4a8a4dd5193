# An answer that /openapi.json does not describe, or a 5xx that somebody can provoke.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $VERSION = '4.32.5';

plan skip_all => 'sanitized run' if $ENV{GLM_SANITIZED};

my $t = GLM::Test->new;
my $venv = "$t->{tree}/build/venv-schemathesis";
my $mark = "$venv/schemathesis-$VERSION";
if (!-e $mark) {
    mkdir "$t->{tree}/build";
    my $log = "$t->{dir}/venv.out";
    my $py = sub { system("$_[0] >>'$log' 2>&1") == 0 };
    $py->("timeout 120 python3 -m venv --clear '$venv'")
        && $py->("timeout 240 '$venv/bin/python' -m pip install -q --disable-pip-version-check schemathesis==$VERSION")
        && do { open my $f, '>', $mark }
        or plan skip_all => "no schemathesis $VERSION: " . ((split /\n/, $t->read_file($log))[-1] // 'unknown');
}

# Beside the real paths two /version that answer something else.
$t->conf(locations => <<'END')->engine->run->ready;
    location / { glm_pass unix:%%SOCKET%%; }
    location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
    location = /wrong/version { default_type application/json; return 200 '{"version": 1, "abi": 1}'; }
    location = /broken/version { default_type application/json; return 500 '{}'; }
END

# Its exit status and its output; bounded by examples, and by five minutes.
sub schemathesis {
    my ($prefix, @more) = @_;
    my $pid = open(my $f, '-|') // die "fork: $!\n";
    if (!$pid) {
        open STDERR, '>&', \*STDOUT;
        chdir $t->{dir};
        @ENV{qw(SCHEMATHESIS_HOOKS PYTHONPATH PYTHONDONTWRITEBYTECODE)} = ('schemathesis_hooks', $FindBin::Bin, 1);
        exec 'timeout', 300, "$venv/bin/schemathesis", '--config-file', "$FindBin::Bin/schemathesis.toml", 'run',
            '--phases', 'examples,coverage,fuzzing', '--no-shrink', '--seed', 1, @more,
            '--url', "http://127.0.0.1:$t->{port}$prefix", "http://127.0.0.1:$t->{port}/openapi.json";
    }
    my $out = do { local $/; <$f> } // '';
    close $f;
    return ($? >> 8, $out);
}

# Described, and not in every build.
my @absent = grep { $t->get($_)->{status} == 404 } '/v1/chat/completions', '/tokenizer_info';
my ($rc, $out) = schemathesis('', map { ('--exclude-path', $_) } @absent);
is($rc, 0, 'every answer is in the description, none is a 5xx') or diag(substr $out, 0, 6000);

# It looked at something.
my %n;
$n{$_}++ for split /\n/, $t->read_file('answers');
my $at = sub { my ($re) = @_; my $n = 0; $n += $n{$_} for grep { /$re/ } keys %n; return $n };
cmp_ok($at->(qr{^POST /v1/completions 200 application/json}), '>=', 20, 'plain answers');
cmp_ok($at->(qr{^POST /v1/completions 200 text/event-stream}), '>=', 1, 'streams');
cmp_ok($at->(qr{^POST /v1/completions 400 }), '>=', 50, 'refused requests');
cmp_ok($at->(qr{^POST /v1/score 200 }), '>=', 5, 'scores');
cmp_ok($at->(qr{^POST /infill 200 }), '>=', 5, 'answers to editors');
cmp_ok($at->(qr{^\S+ /(?:de)?tokenize 200 }), '>=', 5, 'tokenized');
cmp_ok($at->(qr{^\S+ \S+ 405 }), '>=', 10, 'other methods');
diag(join "\n", map { "$n{$_} $_" } sort keys %n) if grep { !$_ } Test::More->builder->summary;

# It sees what is wrong.
($rc, $out) = schemathesis('/wrong', '--include-path', '/version');
ok($rc == 1 && $out =~ /violates schema/, 'an answer outside the schema is found') or diag("$rc: $out");
($rc, $out) = schemathesis('/broken', '--include-path', '/version');
ok($rc == 1 && $out =~ /Server error/, 'a 500 is found') or diag("$rc: $out");

$t->idle(5, 'nothing is left');
is($t->get('/health')->{status}, 200, 'and the engine answers');
$t->done;
