#!/usr/bin/perl
# Runs the test programs under TAP::Harness in three passes (plain, ASan + UBSan,
# TSan) and ends with one line: N passed, N failed, N skipped.  A guard ends what a
# program leaves running, and the whole run with all below it.

use strict;
use warnings;
use TAP::Harness;
use TAP::Parser::Aggregator;
use Time::HiRes qw(time);
use lib 't/lib';
use GLM::Guard;

my $build = shift // 'build';
my $LIMIT = $ENV{GLM_TEST_LIMIT} // 1200;       # seconds, for one file that hangs
my @only = split ' ', $ENV{TESTS} // '';

sub list {
    my ($file) = @_;
    open my $f, '<', $file or die "$file: $!\n";
    return grep { /\S/ } map { s/#.*//r =~ s/\s+//gr } <$f>;
}

my @units = sort grep { -f && -x && !m{/fake_engine$} } glob "'$build/t/*'";
my @perl = sort glob 't/*.t';

# Each pass: label, build directory, environment, files.
my @passes = @only ? ([ '', $build, {}, @only ]) : (
    [ '', $build, {}, @units, @perl ],
    [ ' (asan)', "$build/asan", {
        GLM_SANITIZED => 1,
        ASAN_OPTIONS => 'detect_leaks=1:abort_on_error=0:exitcode=99',
        UBSAN_OPTIONS => 'print_stacktrace=1:halt_on_error=1',
      }, map({ m{^t/.*\.t$} ? $_ : "$build/asan/t/$_" } list('t/asan.list')) ],
    [ ' (tsan)', "$build/tsan", { GLM_SANITIZED => 1, TSAN_OPTIONS => 'exitcode=98' },
      map { "$build/tsan/t/$_" } list('t/tsan.list') ],
);

my $start = time;
my $all = TAP::Parser::Aggregator->new;
$all->start;
for my $pass (@passes) {
    my ($label, $dir, $env, @files) = @$pass;
    local @ENV{keys %$env} = values %$env;
    local $ENV{GLM_BUILD} = $dir;
    local $ENV{GLM_STRICT} = 1;     # a program that is not there is a failure
    local $ENV{GLM_TEST_MODELS} = "$build/models";
    my $h = TAP::Harness->new({
        verbosity => $ENV{VERBOSE} ? 1 : 0,
        timer => 1,
        exec => sub {
            my (undef, $file) = @_;
            my @guarded = ($^X, '-It/lib', "-MGLM::Guard=limit,$LIMIT");
            return [ @guarded, $file =~ /\.t$/ ? $file : ('-e', 'exec { $ARGV[0] } @ARGV', $file) ];
        },
    });
    $h->aggregate_tests($all, map { [ $_, "$_$label" ] } @files);
}
$all->stop;

TAP::Harness->new({ verbosity => 0 })->summary($all);
my $failed = $all->failed;
my ($skipped_files, $broken) = (0, 0);
for my $name ($all->descriptions) {
    my ($p) = $all->parsers($name);
    if ($p->skip_all) {
        $skipped_files++;
        print "skipped $name: ", $p->skip_all, "\n";
    } elsif (!$p->failed && ($p->exit || $p->parse_errors)) {
        $broken++;      # died, or ran another number of tests than planned
        print "broken $name: exit ", $p->exit, "\n";
    }
}
my $skipped = $all->skipped + $skipped_files;
printf "%.0f s\n", time - $start;
printf "%d passed, %d failed, %d skipped\n", $all->passed - $all->skipped, $failed + $broken, $skipped;
exit($failed + $broken ? 1 : 0);
