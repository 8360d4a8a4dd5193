#!/usr/bin/perl
# Examples of the documentation that do something else than it says: every ```console
# block of docs/GLM.md is run.  A line "$ command" is given to the shell, and what it
# prints must be the lines up to the next one; ... stands for anything.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use Test::More;

my $t = GLM::Test->new->engine('--max-num-seqs', 8);
$t->conf(locations => 'location / { glm_pass unix:%%SOCKET%%; }')->run->ready;
my $top = "$FindBin::Bin/..";
$ENV{GLM_SOCKET} = $t->{socket};
$ENV{PATH} = "$t->{build}:$ENV{PATH}";
chdir $top or die "$top: $!";

# [ line number, command, output ] of each example
sub examples {
    my ($file) = @_;
    my (@found, $in);
    open my $f, '<', "$top/$file" or die "$file: $!";
    while (my $line = <$f>) {
        if ($line =~ /^```/) { $in = $line =~ /^```console/; next; }
        next if !$in;
        if ($line =~ /^\$ (.*)/s) { push @found, [ $., $1, '' ]; next; }
        my $last = $found[-1] or die "$file:$.: no command";
        if ($last->[2] eq '' && $last->[1] =~ /\\\n\z/) { $last->[1] .= $line; next; }
        $last->[2] .= $line;
    }
    return @found;
}

for my $file ('docs/GLM.md') {
    my @all = examples($file);
    cmp_ok(scalar @all, '>', 0, "$file has examples");
    for my $e (@all) {
        my ($line, $command, $want) = @$e;
        $command =~ s/127\.0\.0\.1:8080/127.0.0.1:$t->{port}/g;
        my $got = `$command 2>&1`;
        $want =~ s/\n\z//;
        my $re = join '.*?', map { quotemeta } split /\.\.\./, $want, -1;
        like($got, qr/\A$re\n?\z/s, "$file:$line") or diag("\$ $command$got");
    }
}

$t->done;
