# An example of README.md that does not work pasted, or answers something else than it says.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

plan skip_all => 'no curl' if system 'curl --version >/dev/null 2>&1';

my $t = GLM::Test->new->engine->run->ready;
my $readme = $t->read_file("$t->{tree}/README.md");

# In their order, what the text after each says of the answer
my @want = (qr/"text":"Wo ist die Datei\?"/, qr/"text":"file"/, qr/"text":"Python 3".*"text":"Python 3 version"/,
    qr/"best":1\b/, qr/"content":"a"/);
my @blocks = $readme =~ /^```sh\n(curl .*?)^```\n/msg;
is(scalar @blocks, scalar @want, 'examples with curl') || diag(join "\n", @blocks);
for my $i (0 .. $#blocks) {
    my ($first) = $blocks[$i] =~ /([^\n]*)/;
    $blocks[$i] =~ s{//127\.0\.0\.1:8080/}{//127.0.0.1:$t->{port}/}g;
    my ($pid, $out) = open my $f, '-|', 'sh', '-c', "exec 2>/dev/null\n$blocks[$i]";
    { local $/; $out = <$f> }
    close $f;
    like($out, $want[$i], $first);
}

$t->done;
