#!/usr/bin/perl
# A wrong option or a broken model directory that is served, crashes, or is
# refused without saying what is wrong.

use strict;
use warnings;
use File::Glob ":bsd_glob";     # no splitting at blanks of a path
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Copy qw(copy);
use GLM::Engine;
use Test::More;

my $B = build_dir();
my ($engine, $glm) = ("$B/glm-engine", "$B/glm");
my $demo = "$FindBin::Bin/../models/demo";
plan skip_all => 'not built' unless -x $engine && -x $glm && -e "$demo/config.json";

my $path = scratch('e.sock');

# One line on stderr, this exit status, and these words.
sub refused {
    my ($what, $want, $re, @args) = @_;
    my ($status, $out, $err) = run([ $engine, '--socket', $path, @args ]);
    my $good = $status eq $want && $err =~ $re && ($err =~ tr/\n//) == 1 && $out eq '';
    ok($good, $what) or diag("status $status: $err");
}

# ---- options ----

refused('no model', 2, qr/--model/);
refused('an unknown option', 2, qr/--nope/, '--model', $demo, '--nope', 1);
refused('an argument', 2, qr/options only/, 'x');
refused('an option without its value', 2, qr/--model needs a value/, '--model');
refused('a value for one that has none', 2, qr/--version/, '--version=1');
for ([ 'tp', 0 ], [ 'tp', 9 ], [ 'tp', 'x' ], [ 'tp', '' ], [ 'threads', 0 ], [ 'threads', 1025 ],
    [ 'max-num-seqs', 0 ], [ 'max-num-seqs', '1t' ], [ 'kv-tokens', 15 ], [ 'kv-tokens', '2g' ],
    [ 'max-queue', -1 ], [ 'max-clients', 0 ], [ 'max-clients', 4097 ], [ 'spool-bytes', '63k' ],
    [ 'spool-bytes', '99999999999g' ], [ 'pause-timeout', 0 ], [ 'tokenizer-threads', 0 ],
    [ 'max-queue', '1 ' ], [ 'max-queue', ' 1' ], [ 'max-queue', '1kk' ])
{
    my ($name, $value) = @$_;
    refused("--$name \"$value\"", 2, qr/--$name: "\Q$value\E" is not a number from \d+ to \d+/,
        '--model', $demo, "--$name", $value);
}
for ([ 'backend', 'gpu' ], [ 'isa', 'sse' ], [ 'load-format', 'pt' ], [ 'log-level', 'loud' ],
    [ 'backend', 'auto, cpu' ], [ 'backend', '' ])
{
    my ($name, $value) = @$_;
    refused("--$name \"$value\"", 2, qr/--$name: "\Q$value\E" is none of \w+, \w+/, '--model', $demo,
        "--$name", $value);
}
refused('--socket-mode 1777', 2, qr/--socket-mode.*0 to 777/, '--model', $demo, '--socket-mode', 1777);
refused('--socket-mode 8', 2, qr/--socket-mode/, '--model', $demo, '--socket-mode', 8);
refused('a model name of 200 bytes', 2, qr/--served-model-name.*127/, '--model', $demo,
    '--served-model-name', 'x' x 200);
refused('a model name that is no UTF-8', 2, qr/--served-model-name/, '--model', $demo,
    '--served-model-name', "\xff");
refused('--tp 3', 1, qr/\b3\b/, '--model', $demo, '--tp', 3);

my ($status, $out, $err) = run([ $engine, '--version' ]);
ok($status eq '0' && $out =~ /^glm-engine \d+\.\d+\.\d+, wire ABI 1\n$/, '--version');
($status, $out, $err) = run([ $engine, '--help' ]);
my @all = qw(model backend tp threads isa socket socket-group socket-mode load-format max-num-seqs
    kv-tokens max-queue max-clients spool-bytes pause-timeout served-model-name tokenizer-threads
    log-level version help);
ok($status eq '0' && !(grep { $out !~ /--\Q$_\E\b/ } @all), '--help names every option');

# ---- broken models ----

my $n = 0;

# A copy of the demo model, after a change.
sub model {
    my ($change) = @_;
    my $dir = scratch('model' . ++$n);
    mkdir $dir or die;
    for my $f (glob "$demo/*") {
        my ($base) = $f =~ m{([^/]+)$};
        copy($f, "$dir/$base") or die "$f: $!";
    }
    $change->($dir);
    return $dir;
}

sub edit {
    my ($file, $from, $to) = @_;
    my $s = slurp($file);
    $s =~ s/$from/$to/ or die "$file: no $from";
    open my $f, '>:raw', $file or die;
    print $f $s;
    close $f;
}

sub broken {
    my ($what, $re, $change) = @_;
    my $dir = model($change);
    refused($what, 1, $re, '--model', $dir);
    ok(!-e $path && !-e "$path.lock", '... nothing stays behind');
    system 'rm', '-rf', $dir;
}

refused('no directory', 1, qr{/nonexistent}, '--model', '/nonexistent');
broken('no config.json', qr{config\.json}, sub { unlink "$_[0]/config.json" });
broken('an empty config.json', qr{config\.json}, sub { truncate "$_[0]/config.json", 0 });
broken('a config.json that is cut', qr{config\.json}, sub { truncate "$_[0]/config.json", 100 });
broken('a field that is missing', qr{config\.json.*num_layers}, sub { edit("$_[0]/config.json", '"num_layers"', '"n_layers"') });
broken('a field out of range', qr{config\.json.*num_attention_heads}, sub { edit("$_[0]/config.json", '"num_attention_heads": *\d+', '"num_attention_heads": 7') });
broken('a wrong shape', qr{safetensors.*(?:shape|\d+).*}, sub { edit("$_[0]/config.json", '"hidden_size": *256', '"hidden_size": 512') });
my ($weights) = map { m{([^/]+)$} } glob "$demo/*.safetensors";
broken('no weights', qr{safetensors}, sub { unlink "$_[0]/$weights" });
broken('weights that are cut', qr{\Q$weights\E}, sub { truncate "$_[0]/$weights", 1_000_000 });
broken('weights of 4 bytes', qr{\Q$weights\E}, sub { truncate "$_[0]/$weights", 4 });
broken('weights of no bytes', qr{\Q$weights\E}, sub { truncate "$_[0]/$weights", 0 });
broken('no tokenizer model', qr{tokenizer}, sub { unlink "$_[0]/tokenizer.model" });
broken('a tokenizer model that is cut', qr{tokenizer}, sub { truncate "$_[0]/tokenizer.model", 5000 });

# ---- and what is right ----

my $e = start($engine, '--model', $demo, "--socket=$path", '--served-model-name', 'other', '--tp', 2,
    '--threads', 2, '--isa', 'plain', '--max-num-seqs', 4, '--kv-tokens', '4k', '--max-queue', 2,
    '--backend', 'cpu', '--load-format', 'auto', '--tokenizer-threads', 1, '--max-clients', 3,
    '--spool-bytes', '1m', '--pause-timeout', 5, '--socket-mode', '600', '--log-level', 'info');
ok($e->says(qr/serving "other"/, 30), 'all options at once') or diag($e->err);
($status, $out, $err) = run([ $glm, 'complete', '--socket', $path, '--max-tokens', 3, 'Hello' ]);
is($status, 0, 'a completion') or diag($err);
like($e->err, qr/client \d+ uid $> "glm" kind 2/, 'the client is logged with its user');
is($e->stop('TERM', 10), 0, 'SIGTERM');

# Dummy weights need config.json alone.
my $dir = model(sub { unlink "$_[0]/$weights" });
$e = start($engine, '--model', $dir, '--socket', $path, '--load-format', 'dummy');
ok($e->says(qr/serving/, 30), 'dummy weights need no file') or diag($e->err);
is($e->stop('TERM', 10), 0, 'SIGTERM');

# A drain with the real engine.
$e = start($engine, '--model', $demo, '--socket', $path);
$e->says(qr/serving/, 30);
my @c = map { start($glm, 'complete', '--socket', $path, '--ids', '--no-special', '--max-tokens', 400,
    '--temperature', 1, '--seed', $_, '--mode', 'unidirectional', '5 6 7 8') } 1 .. 4;
wait_for { !grep { !length $_->out } @c } 20;
$e->kill('TERM');
is(join(' ', map { $_->ended(60) // 'hangs' } @c), '0 0 0 0', 'SIGTERM: four streams end well');
is($e->ended(20), 0, 'then the engine');

done_testing();
