# A field of the completions API that does not do what its name says when the real
# engine generates: each one against what greedy decoding gives without it.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine->run->ready;
my $URI = '/v1/completions';
my $FILE = 'English: Where is the file? German:';      # Wo ist die Datei?
my @IDS = (3252, 230, 94, 1157, 143);                   # and eop, 7813

sub ask { return $t->complete(prompt => $FILE, temperature => 0, return_token_ids => TRUE, @_)->{choices}[0] }
sub ids { return ask(@_)->{token_ids} }

my $plain = ask();
is_deeply($plain->{token_ids}, \@IDS, 'without any field');
is($plain->{text}, 'Wo ist die Datei?', 'its text');

# Which ids may come

ok(!grep({ $_ == 3252 } @{ ids(logit_bias => { 3252 => -100 }) }), 'logit_bias -100 keeps an id out');
is(ids(logit_bias => { 42 => 100 }, max_tokens => 3)->[0], 42, 'logit_bias 100 brings it');
my %allowed = map { $_ => 1 } 10, 13, 42;
is_deeply([ grep { !$allowed{$_} } @{ ids(allowed_token_ids => [ 10, 13, 42 ], max_tokens => 8) } ], [],
    'allowed_token_ids');
ok(!grep({ $_ == 1157 } @{ ids(bad_words => ['Datei'], max_tokens => 12) }), 'bad_words: not by the tokens of the word');
cmp_ok(scalar @{ ids(min_tokens => 9, max_tokens => 12) }, '>=', 9, 'min_tokens holds the end back');
my $long = $t->complete(prompt => $FILE, temperature => 0, ignore_eos => TRUE, max_tokens => 20);
is($long->{usage}{completion_tokens}, 20, 'ignore_eos: goes on');
is($long->{choices}[0]{finish_reason}, 'length', 'ignore_eos: until max_tokens');

# Penalties: a text that repeats itself stops doing so

my %loop = (prompt => 'This package provides', max_tokens => 60, ignore_eos => TRUE);
sub distinct { my %seen = map { $_ => 1 } @{ ids(%loop, @_) }; return scalar keys %seen }
my $distinct = distinct();
cmp_ok(distinct(presence_penalty => 2), '>', $distinct, 'presence_penalty');
cmp_ok(distinct(frequency_penalty => 2), '>', $distinct, 'frequency_penalty');
cmp_ok(distinct(repetition_penalty => 3), '>', $distinct, 'repetition_penalty');
is(distinct(presence_penalty => 0, frequency_penalty => 0, repetition_penalty => 1), $distinct, 'none at 0, 0, 1');

# Ends

my $c = ask(stop => [ 'xyz', ' die' ]);
is_deeply([ @$c{qw(text finish_reason stop_reason)} ], [ 'Wo ist', 'stop', ' die' ], 'stop and stop_reason');
is(ask(stop => ' die', include_stop_str_in_output => TRUE)->{text}, 'Wo ist die', 'include_stop_str_in_output');
$c = ask(stop_token_ids => [94]);
is_deeply([ @$c{qw(text finish_reason stop_reason)} ], [ 'Wo ist', 'stop', 94 ], 'stop_token_ids');
is(ask(stop => 'tei')->{text}, 'Wo ist die Da', 'a stop inside of a token');
$c = ask(%loop, repetition_detection => { max_pattern_size => 8, min_pattern_size => 1, min_count => 3 },
    logit_bias => { 42 => 100 });
is_deeply([ scalar @{ $c->{token_ids} }, $c->{finish_reason} ], [ 3, 'repetition' ], 'repetition_detection');

# Several answers

my $many = $t->complete(prompt => [ $FILE, 'English: Save the file German:' ], n => 3, seed => 5, temperature => 1);
is_deeply([ map { $_->{index} } @{ $many->{choices} } ], [ 0 .. 5 ], 'choices are prompt-major');
my $best = $t->complete(prompt => $FILE, n => 1, best_of => 5, seed => 5, temperature => 1, logprobs => 0);
my @all = map { $_->{logprobs}{token_logprobs} } @{
    $t->complete(prompt => $FILE, n => 5, seed => 5, temperature => 1, logprobs => 0)->{choices} };
my $mean = sub { my ($l) = @_; my $s = 0; $s += $_ for @$l; return @$l ? $s / @$l : 0 };
my ($top) = sort { $b <=> $a } map { $mean->($_) } @all;
cmp_ok(abs($mean->($best->{choices}[0]{logprobs}{token_logprobs}) - $top), '<', 0.2, 'best_of: among the best');

# The prompt

my $cut = $t->complete(prompt => $FILE, truncate_prompt_tokens => 5, max_tokens => 1);
is($cut->{usage}{prompt_tokens}, 5 + 1, "truncate_prompt_tokens: of the prompt's own ids, the mask comes after");
like(ask(echo => TRUE)->{text}, qr/^\Q$FILE\E/, 'echo');
check_error($t->post($URI, { prompt => 'a [MASK] b', echo => TRUE, logprobs => 1 }), 400, 'echo of a mask',
    param => 'prompt');

# How it is told

$c = ask(logprobs => 1, return_tokens_as_token_ids => TRUE);
is($c->{logprobs}{tokens}[0], 'token_id:3252', 'return_tokens_as_token_ids');
is($t->complete(prompt => 'a', max_tokens => 1, request_id => 'mine-7')->{id}, 'cmpl-mine-7', 'request_id');
my @chunks = $t->stream(prompt => $FILE, temperature => 0, stream_interval => 3,
    stream_options => { include_usage => TRUE, continuous_usage_stats => TRUE });
my @with = grep { @{ $_->{choices} } } @chunks;
is(join('', map { $_->{choices}[0]{text} } @with), $plain->{text}, 'stream_interval: nothing is lost');
cmp_ok(scalar @with, '<', 5, 'and fewer chunks come');
is(scalar(grep { !$_->{usage} } @chunks), 0, 'continuous_usage_stats: in each chunk');
is($t->complete(prompt => 'a', max_tokens => 1, priority => -3, user => 'me')->{usage}{completion_tokens}, 1, 'priority');

# Chat

my $r = $t->post('/v1/chat/completions', { messages => [ { role => 'user', content => 'Where is the [MASK]?' } ],
    temperature => 0, max_completion_tokens => 4, logprobs => TRUE, top_logprobs => 2 });
is($r->{status}, 200, 'chat; a mask in a message is text');
my $m = json($r->{body});
is($m->{choices}[0]{message}{role}, 'assistant', 'its role');
is(join('', map { pack 'C*', @{ $_->{bytes} } } @{ $m->{choices}[0]{logprobs}{content} }) =~ s/^ //r,
    $m->{choices}[0]{message}{content}, 'bytes of its tokens make its text');

$t->idle(5, 'nothing is left');
$t->done;
