#!/usr/bin/perl
# The command-line client that shows something else than the engine said, hides
# an error, or hangs.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Engine;
use JSON::PP;
use Test::More;

my $B = build_dir();
my ($fake, $engine, $glm) = ("$B/t/fake_engine", "$B/glm-engine", "$B/glm");
my $demo = "$FindBin::Bin/../models/demo";
plan skip_all => 'not built' unless -x $fake && -x $engine && -x $glm && -e "$demo/config.json";

my $path = scratch('e.sock');
my $json = JSON::PP->new->utf8;

sub glm {
    my ($command, @args) = @_;
    my %o = ref $args[-1] eq 'HASH' ? %{ pop @args } : ();
    return run([ $glm, $command, '--socket', $path, @args ], %o);
}

# ---- wrong use ----

sub wrong {
    my ($what, $re, @args) = @_;
    my ($status, $out, $err) = run([ $glm, @args ]);
    ok($status eq '2' && $err =~ $re && $out eq '' && ($err =~ tr/\n//) == 1, $what) or diag("$status $err");
}

wrong('no command', qr/a command is needed/);
wrong('an unknown one', qr/a command is needed/, 'serve');
wrong('no prompt', qr/prompt/, 'complete');
wrong('two prompts', qr/one prompt/, 'complete', 'a', 'b');
wrong('an unknown option', qr/--nope/, 'complete', '--nope', 1, 'x');
wrong('an option of another command', qr/--stop/, 'tokenize', '--stop', 'a', 'x');
wrong('--temperature -1', qr/--temperature.*0 to/, 'complete', '--temperature', -1, 'x');
wrong('--temperature nan', qr/--temperature/, 'complete', '--temperature', 'nan', 'x');
wrong('--presence-penalty 3', qr/--presence-penalty.*-2 to 2/, 'complete', '--presence-penalty', 3, 'x');
wrong('--repetition-penalty 0', qr/--repetition-penalty/, 'complete', '--repetition-penalty', 0, 'x');
wrong('--min-tokens -1', qr/--min-tokens/, 'complete', '--min-tokens', -1, 'x');
wrong('--echo of another command', qr/--echo/, 'tokenize', '--echo', 'x');
wrong('--top-p 2', qr/--top-p.*0 to 1/, 'complete', '--top-p', 2, 'x');
wrong('--logprobs 21', qr/--logprobs.*0 to 20/, 'complete', '--json', '--logprobs', 21, 'x');
wrong('--logprobs without --json', qr/--json/, 'complete', '--logprobs', 2, 'x');
wrong('--mode both', qr/--mode/, 'complete', '--mode', 'both', 'x');
wrong('--seed x', qr/--seed/, 'complete', '--seed', 'x', 'y');
wrong('--max-tokens -2', qr/--max-tokens/, 'complete', '--max-tokens', -2, 'x');
wrong('ids that are none', qr/--ids/, 'complete', '--ids', '1 2 x');
wrong('65 stops', qr/--stop.*64/, 'complete', map({ ('--stop', $_) } 1 .. 65), 'x');

my ($status, $out, $err) = run([ $glm, '--help' ]);
ok($status eq '0' && $out =~ /complete/ && $out =~ /--logprobs/, '--help');
($status, $out, $err) = run([ $glm, '--version' ]);
ok($status eq '0' && $out =~ /^glm \d/, '--version');

($status, $out, $err) = glm('complete', 'x');
ok($status eq '1' && $err =~ /\Q$path\E.*No such file/, 'no engine there');
($status, $out, $err) = run([ $glm, 'complete', '--model', '/nonexistent', 'x' ]);
ok($status eq '1' && $err =~ m{/nonexistent/config.json}, 'no model there');
($status, $out, $err) = run([ $glm, 'complete', '--backend', 'cuda', '--model', $demo, 'x' ]);
ok($status eq '1' ? $err =~ /CUDA/ : $status eq '0', 'no CUDA here, or a card');

# ---- the scripted engine ----

my $e = start($fake, '--socket', $path);
$e->says(qr/serving/, 60) or die $e->err;

($status, $out, $err) = glm('complete', 'fake: tokens=3');
ok($status eq '0' && $out eq "t256 t257 t258 \n" && $err eq '', 'text');
($status, $out, $err) = glm('complete', 'fake: utf8 tokens=9');
is($out, "\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80\n", 'characters of several bytes');
($status, $out, $err) = run([ $glm, 'complete', 'fake: tokens=1' ], env => { GLM_SOCKET => $path });
is($out, "t256 \n", 'GLM_SOCKET');

my $prompt = "fake: echo\n\n  two\nlines \xc3\xa9\n";
($status, $out, $err) = glm('complete', '-', { in => $prompt });
is($out, "$prompt\n", 'standard input keeps its newlines');
($status, $out, $err) = glm('complete', '--', '--fake: echo');
is($status, 0, 'a prompt that begins with dashes');
my $long = "fake: echo burst=100\n" . 'x' x 1800;
is((glm('complete', '-', { in => $long }))[1], "$long\n", 'a long one');

my $c = start($glm, 'complete', '--socket', $path, 'fake: tokens=2 delay=4000');
ok((wait_for { $c->out eq 't256 ' && $c->alive } 60), 'text is printed as it comes');
is($c->ended(60), 0, 'and it ends');

($status, $out, $err) = glm('complete', 'fake: error=503 code=server_is_overloaded message=the_queue_is_full');
ok($status eq '1' && $err =~ /the queue is full.*503.*server_is_overloaded/ && $out eq '', 'a refusal');
($status, $out, $err) = glm('complete', 'fake: tokens=5 errorat=2 error=500 message=it_broke');
ok($status eq '1' && $err =~ /it broke/ && $out eq 't256 t257 ', 'an error in mid-stream');
($status, $out, $err) = glm('complete', "\xff");
ok($status eq '1' && $err =~ /UTF-8/, 'a prompt that is no UTF-8');
($status, $out, $err) = glm('complete', '');
ok($status eq '1' && $err =~ /empty/, 'an empty one');

$c = start($glm, 'complete', '--socket', $path, '--max-tokens', 1000, 'fake: tokens=1000 delay=20');
wait_for { length $c->out } 60;
$c->kill('INT');
ok($c->ended(60) eq '1' && $c->err =~ /interrupted/, 'Ctrl-C cancels');
$c = start($glm, 'complete', '--socket', $path, 'fake: hang nocancel');
ok($e->alive && !defined $c->ended(0.5), 'an engine that says nothing is waited for');
$c->kill('INT');
ok(!defined $c->ended(0.5), '... one Ctrl-C asks it');
$c->kill('INT');
is($c->ended(60), 130, '... two end it');

system("$glm complete --socket $path 'fake: tokens=100 bytes=5000' | head -c 10 >/dev/null");
pass('a reader that goes away ends it');

($status, $out, $err) = glm('complete', '--json', '--logprobs', 1, '--seed', 7, 'fake: tokens=2 stopindex=1 cached=3',
    '--stop', 'a', '--stop', "b\n");
my $r = eval { $json->decode($out) } // {};
is($r->{text}, 't256 t257 ', 'JSON: text');
is_deeply($r->{token_ids}, [ 256, 257 ], 'token_ids');
is(scalar @{ $r->{prompt_token_ids} // [] }, 37, 'prompt_token_ids, with mask and eos');
is("$r->{finish_reason} $r->{stop_reason}", "stop b\n", 'the stop that hit');
is($r->{seed}, 7, 'seed');
is_deeply($r->{logprobs}{tokens}, [ 't256 ', 't257 ' ], 'tokens');
is_deeply($r->{logprobs}{token_logprobs}, [ -0.25, -0.25 ], 'token_logprobs');
is_deeply($r->{logprobs}{top_logprobs}, [ { 't256 ' => -0.25 }, { 't257 ' => -0.25 } ], 'top_logprobs');
is_deeply($r->{usage}, { prompt_tokens => 37, completion_tokens => 2, total_tokens => 39 }, 'usage');
($status, $out, $err) = glm('complete', '--json', '--logprobs', 0, 'fake: utf8 tokens=2');
$r = eval { $json->decode($out) } // {};
is_deeply($r->{logprobs}{tokens}, [ 'bytes:\xc3', 'bytes:\xa9' ], 'tokens that are bytes');
($status, $out, $err) = glm('complete', '--ids', 'fake: tokens=1');
is($status, 2, '--ids: text is none');
($status, $out, $err) = glm('complete', '--ids', '--max-tokens', 2, '[102, 97,107]');
is($out, "256 257 \n", '--ids: ids in, ids out');

is((glm('complete', '--echo', 'fake: tokens=2 text=x'))[1], "fake: tokens=2 text=xxx\n", '--echo');
is($json->decode((glm('complete', '--echo', '--json', '--min-tokens', 1, '--frequency-penalty', '-0.5',
    'fake: tokens=2 text=x'))[1])->{text}, 'fake: tokens=2 text=xxx', '--echo --json');
is((glm('tokenize', '--no-special', "h\xc3\xa9"))[1], "104 195 169\n", 'tokenize');
is((glm('tokenize', 'h'))[1], "104 19990 19991\n", 'tokenize with mask and eos');
is((glm('tokenize', '--ids', '104 300 105'))[1], "ht300 i\n", 'tokenize --ids');
is_deeply($json->decode((glm('tokenize', '--json', '--ids', '104'))[1]), { prompt => 'h' }, 'tokenize --ids --json');

$c = start($glm, 'complete', '--socket', $path, 'fake: tokens=9 dieat=3 delay=5');
ok($c->ended(60) eq '1' && $c->err =~ /gone/, 'an engine that dies');
is($e->ended(60), 70, 'did');
unlink $path;
$e = start($fake, '--socket', $path);
$e->says(qr/serving/, 60) or die $e->err;
($status, $out, $err) = glm('complete', 'fake: tokens=9 garbageat=3');
ok($status eq '1' && $err =~ /broke the ring/, 'an engine that breaks the ring');
is($e->stop('TERM'), 0, 'ends');

# ---- the demo model, both ways ----

$e = start($engine, '--model', $demo, '--socket', $path);
$e->says(qr/serving/, 60) or die $e->err;
my @local = ('--model', $demo);
my $german = 'English: Where is the file? German:';
for my $args ([ 'complete', '--max-tokens', 20, $german ],
    [ 'complete', '--json', '--logprobs', 3, '--temperature', 0.8, '--seed', 3, '--max-tokens', 12, $german ],
    [ 'complete', '--mode', 'unidirectional', '--max-tokens', 8, 'The ' ],
    [ 'complete', '--max-tokens', 8, 'A [MASK] text' ], [ 'complete', '--plain', '--max-tokens', 8, 'A [MASK] text' ],
    [ 'tokenize', '--json', "$german\n\t  x\xf0\x9f\x98\x80" ], [ 'tokenize', 'a [MASK] b' ],
    [ 'tokenize', '--plain', 'a [MASK] b' ], [ 'tokenize', '--ids', '22 8 5 5242 26 10 126 143' ],
    [ 'infill', '--max-tokens', 4, 'A [MASK] and a [MASK] text' ],
    [ 'infill', '--json', '--stop', 'e', '--seed', 3, 'A [MASK] and a [MASK] text' ],
    [ 'score', '--gmask', $german, 'Wo ist die Datei?', 'Nein' ],
    [ 'score', '--json', '--mode', 'unidirectional', $german, 'Nein', 'Wo ist die Datei?' ])
{
    my ($command, @rest) = @$args;
    my @a = glm($command, @rest);
    my @b = run([ $glm, $command, @local, @rest ]);
    ok($a[0] eq '0' && length $a[1] > 1, "demo: @$args[0 .. $#$args - 1]") or diag($a[2]);
    is($b[1], $a[1], '... the same with the engine inside') or diag($b[2]);
}
like((glm('complete', '--max-tokens', 20, $german))[1], qr/^Wo ist die Datei\?/, 'it translates');
is((glm('tokenize', '--ids', (glm('tokenize', '--no-special', 'Hello, world'))[1]))[1], "Hello, world\n",
    'text to ids and back');
isnt((glm('tokenize', '--plain', 'a [MASK] b'))[1], (glm('tokenize', 'a [MASK] b'))[1], '--plain');
($status, $out, $err) = glm('complete', '--stop', 'ist', $german);
is($out, "Wo \n", '--stop');
($status, $out, $err) = glm('complete', '--json', '--stop', 'ist', $german);
is($json->decode($out)->{stop_reason}, 'ist', 'stop_reason');
($status, $out, $err) = glm('complete', '--max-tokens', 100000, 'x');
ok($status eq '1' && $err =~ /context_length_exceeded/, 'more than the context holds');
($status, $out, $err) = glm('complete', '--ids', '1 99999');
ok($status eq '1' && $err =~ /99999/ && $err =~ /prompt/, 'an id that is none');

# ---- blanks and scores ----

($status, $out, $err) = glm('infill', '--json', '--max-tokens', 4, 'A [MASK] and a [MASK] text');
$r = eval { $json->decode($out) } // {};
my $text = (glm('infill', '--max-tokens', 4, 'A [MASK] and a [MASK] text'))[1];
is("$r->{text}\n", $text, 'infill: the text, and in JSON');
is(scalar @{ $r->{blanks} // [] }, 2, 'with its blanks');
is(substr($r->{text}, $_->{start}, $_->{end} - $_->{start}), $_->{text}, "where blank $_->{index} is")
    for @{ $r->{blanks} };
my $ids = (glm('tokenize', '--no-special', 'A [MASK] and a [MASK] text'))[1];
($status, $out, $err) = glm('infill', '--ids', '--no-special', '--max-tokens', 4, $ids);
like($out, qr/^\d+ (?:\d+ ){0,3}\n(?:\d+ ){1,4}\n\z/, '--ids: those of each blank in a line');
($status, $out, $err) = glm('infill', '--max-tokens', 1, '-', { in => "a\0b [MASK] c\0d" });
like($out, qr/^a\0b .* ?c\0d\n\z/s, 'a NUL is a character like others');
($status, $out, $err) = glm('score', '--gmask', $german, 'Nein', 'Wo ist die Datei?');
like($out, qr/^ +-\d+\.\d{6}  Wo ist die Datei\?\n +-\d+\.\d{6}  Nein\n\z/, 'score: best first');
$r = eval { $json->decode((glm('score', '--json', '--gmask', $german, 'Nein', 'Wo ist die Datei?'))[1]) } // {};
is_deeply([ map { $_->{text} } @{ $r->{choices} } ], [ 'Nein', 'Wo ist die Datei?' ], 'in JSON as they were given');
is($r->{best}, 1, 'and which is the best');
is(sprintf('%.6f', $r->{choices}[$r->{best}]{logprob}), ($out =~ /(-\S+)/)[0], 'the same numbers');
is($e->stop('TERM'), 0, 'the engine ends');

done_testing();
