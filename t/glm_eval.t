#!/usr/bin/perl
# Evaluations that give another number than the model, forget what they had when they
# are interrupted, or hide a broken file.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Engine;
use JSON::PP;
use Test::More;

my $B = build_dir();
my $glm = "$B/glm";
my $demo = "$FindBin::Bin/../models/demo";
plan skip_all => 'not built' unless -x $glm && -e "$demo/config.json";
my $json = JSON::PP->new->utf8->canonical;

sub put {
    my ($name, @lines) = @_;
    my $path = scratch($name);
    open my $f, '>', $path or die "$path: $!";
    print $f map { ref $_ ? $json->encode($_) . "\n" : $_ } @lines;
    close $f;
    return $path;
}

sub evaluate {
    my ($status, $out, $err) = run([ $glm, 'eval', '--model', $demo, '--json', @_ ]);
    return $status eq '0' ? $json->decode($out) : { error => "$status $err" };
}

sub near {
    my ($got, $want, $eps, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    ok(defined $got && abs($got - $want) <= $eps, $name) or diag(($got // 'none') . " for $want");
}

# ---- multiple choice ----

my $ask = 'English: Where is the file? German:';
my @choices = ('Das Fenster ist offen.', 'Wo ist die Datei?', 'Wo ist der Hund?');
my $mul = put('mul.jsonl',
    { inputs_pretokenized => $ask, choices_pretokenized => \@choices, label => 1 },
    { inputs_pretokenized => $ask, choices_pretokenized => \@choices, label => 2 },
    "\n",
    { inputs => [ 22, 8, 5, 5242, 26, 10, 126, 143, 42, 8 ], label => 0,
      choices => [ [ 3252, 230, 94, 1157, 143 ], [ 2012, 5, 4462, 230, 13, 1654, 7 ] ] },
    { inputs_pretokenized => 'English: The file is [MASK]. German: Die Datei ist leer.',
      choices_pretokenized => [ 'open', 'empty' ], label => 1 });
my $r = evaluate('mul', $mul);
near($r->{metrics}{Accuracy}{average}, 75, 1e-9, 'accuracy') or diag(explain($r));
is($r->{files}[0]{items}, 4, 'items');
$r = evaluate('--gmask', 'mul', $mul, put('one.jsonl', { inputs_pretokenized => $ask,
    choices_pretokenized => \@choices, label => 0 }));
near($r->{files}[1]{Accuracy}, 0, 0, 'another file') or diag(explain($r));
near($r->{metrics}{Accuracy}{average}, 60, 1e-9, 'the average is weighted');
near($r->{metrics}{Accuracy}{median}, 37.5, 1e-9, 'the median is not');
near($r->{metrics}{Accuracy}{max}, 75, 1e-9, 'the largest');

# A text that is too long keeps its end.
$r = evaluate('--gmask', '--max-seq-length', 30, '--max-gen-length', 8, '--generation-length', 8,
    'mul', put('long.jsonl',
    { inputs_pretokenized => ('German: ' x 200) . $ask, choices_pretokenized => [ @choices[ 1, 2 ] ], label => 0 }));
near($r->{metrics}{Accuracy}{average}, 100, 0, 'a long text') or diag(explain($r));

# ---- generation ----

my $gen = put('gen.jsonl',
    { inputs_pretokenized => $ask, targets_pretokenized => [ 'Nein', 'wo ist DIE Datei' ] },
    { inputs_pretokenized => $ask, targets_pretokenized => [ 'Wo ist der Hund?' ] });
$r = evaluate('--gmask', '--max-gen-length', 20, 'gen', $gen);
near($r->{metrics}{EM}{average}, 50, 1e-9, 'exact match') or diag(explain($r));
near($r->{metrics}{F1}{average}, 75, 1e-9, 'F1');
$r = evaluate('--gmask', '--max-gen-length', 20, '--num-beams', 4, '--no-repeat-ngram-size', 3, 'gen', $gen);
near($r->{metrics}{EM}{average}, 50, 1e-9, 'with beams') or diag(explain($r));
$r = evaluate('--gmask', '--unidirectional', '--max-gen-length', 20, 'gen', $gen);
ok(defined $r->{metrics}{F1}{average}, 'unidirectional') or diag(explain($r));
$r = evaluate('--max-gen-length', 8, 'gen', put('blank.jsonl',
    { inputs_pretokenized => 'English: [MASK] German: Die Datei ist leer.',
      targets_pretokenized => [ 'The file is empty.' ] }));
near($r->{metrics}{EM}{average}, 100, 0, 'a blank') or diag(explain($r));

# ---- perplexity ----

my $text = "English: Where is the file? German: Wo ist die Datei?\nEnglish: Save the file. German: Datei speichern.";
my ($status, $out, $err) = run([ $glm, 'score', '--json', '--gmask', '--model', $demo, '', $text ]);
my $sum = $json->decode($out)->{choices}[0]{logprob};
$r = evaluate('--gmask', 'ppl', put('text', $text));
near($r->{files}[0]{bits_per_byte}, -$sum / log(2) / length $text, 1e-5, 'one window: the score of the text')
    or diag(explain($r));
near($r->{files}[0]{PPL}, exp(-$sum / (1 + ($text =~ tr/ //))), 1e-2, 'words as the original counts them');
my $parted = evaluate('--gmask', '--documents', '%%', 'ppl', put('parted', "$text\n%%\n$text\n%%\n"));
is($parted->{files}[0]{items}, 2, 'documents');
near($parted->{files}[0]{loss}, $r->{files}[0]{loss}, 1e-6, 'each alone');
my $eop = evaluate('--gmask', '--eop', 'ppl', put('text', $text));
isnt($eop->{files}[0]{loss}, $r->{files}[0]{loss}, 'eop counts');
my $long = put('long', "$text\n" x 40);
my $windows = evaluate('--gmask', '--max-seq-length', 100, '--max-gen-length', 8,
    '--generation-length', 20, 'ppl', $long);
cmp_ok($windows->{files}[0]{items}, '>', 50, 'many windows');

# ---- to be continued ----

my $journal = scratch('journal');
my @args = ('--gmask', '--max-seq-length', 100, '--max-gen-length', 8, '--generation-length', 20,
    '--resume', $journal, 'ppl', $long);
is_deeply(evaluate(@args), $windows, 'with a journal: the same');
my @lines = split /^/, slurp($journal);
is(@lines, 1 + $windows->{files}[0]{items}, 'a line a result');
put('journal', @lines[ 0 .. 20 ], substr($lines[21], 0, 5));
is_deeply(evaluate(@args), $windows, 'half of it, and a line that was cut: the same');
is(scalar(split /^/, slurp($journal)), @lines + 0, 'nothing twice');
$lines[1] =~ s/^(\[\d+, \d+, )[-\d.]+/${1}1e6/;
put('journal', @lines);
isnt(evaluate(@args)->{files}[0]{loss}, $windows->{files}[0]{loss}, 'old results are not computed again');
like(evaluate('--gmask', '--resume', $journal, 'ppl', $long)->{error}, qr/--resume.*another/, 'those of another task are refused');

# ---- broken files ----

sub fails {
    my ($name, $re, @a) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    like(evaluate(@a)->{error} // 'none', $re, $name);
}

fails('no file', qr/^1 .*nowhere/, 'mul', scratch('nowhere'));
fails('an empty file', qr/^1 .*holds nothing/, 'mul', put('empty', ''));
fails('no JSON', qr/^1 .*bad:2/, 'mul', put('bad', "\n", "{\n"));
fails('no label', qr/item 1: .*label/, 'mul', put('bad', { inputs => [ 1 ], choices => [ [ 1 ] ] }));
fails('no choices', qr/item 1: .*choices_pretokenized/, 'mul', put('bad', { inputs => [ 1 ], label => 0 }));
fails('no inputs', qr/item 1: .*inputs_pretokenized/, 'mul', put('bad', { choices => [ [ 1 ] ], label => 0 }));
fails('an empty choice', qr/item 2: choice 1 is empty/, 'mul',
    put('bad', { inputs => [ 22 ], choices => [ [ 22 ] ], label => 0 }, { inputs => [ 22 ], choices => [ [ 22 ], [] ], label => 0 }));
fails('an id beyond the vocabulary', qr/item 1: .*8192/, 'mul', put('bad', { inputs => [ 8192 ], choices => [ [ 1 ] ], label => 0 }));
fails('ids that are none', qr/item 1: .*whole number/, 'gen', put('bad', { inputs => [ 1.5 ], targets => [] }));
fails('no task', qr/^2 .*mul, gen or ppl/, 'all', $mul);
fails('no files', qr/^2 .*files/, 'mul');
fails('--unidirectional alone', qr/^2 .*--gmask/, '--unidirectional', 'mul', $mul);
fails('more tokens than the model has', qr/^1 .*--max-seq-length.*1024/, '--max-seq-length', 2000, 'mul', $mul);

done_testing;
