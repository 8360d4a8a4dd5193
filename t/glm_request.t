# A field of /v1/completions that is lost, misread or refused, an answer of another
# shape than OpenAI's, or a field of a later feature that is silently ignored.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine('--max-num-seqs', 8)->run->ready;

my $P = 'English: Where is the file? German:';
my @P = (temperature => 0, prompt => $P);
my $URI = '/v1/completions';

# The shape

my $r = $t->post($URI, { @P });
is($r->{status}, 200, 'a completion');
like($r->{headers}{'content-type'}, qr{^application/json}, 'content type');
ok($r->{headers}{'x-request-id'}, 'x-request-id');
like($r->{headers}{'openai-processing-ms'} // 'absent', qr/^\d+(\.\d+)?$/, 'openai-processing-ms');
my $j = json($r->{body});
is_deeply([ sort keys %$j ],
    [ qw(choices created id model object system_fingerprint usage) ], 'keys of the answer');
like($j->{id}, qr/^cmpl-./, 'id');
is($j->{object}, 'text_completion', 'object');
cmp_ok(abs($j->{created} - time), '<', 60, 'created');
is($j->{model}, 'glm-demo-9m', 'model');
is_deeply($j->{choices}, [ { index => 0, text => 'Wo ist die Datei?', logprobs => undef,
    finish_reason => 'stop', stop_reason => undef } ], 'the choice');
is_deeply($j->{usage}, { prompt_tokens => 11, completion_tokens => 6, total_tokens => 17,
    prompt_tokens_details => { cached_tokens => 0 } }, 'usage');
like($r->{body}, qr/"index":\s*0\b/, 'numbers are numbers');

# Prompts

my $text = sub {
    my $r = $t->post($URI, { temperature => 0, @_ });
    return $r->{status} == 200 ? json($r->{body})->{choices}[0]{text} : "$r->{status} $r->{body}";
};
is($text->(prompt => [ $P ]), 'Wo ist die Datei?', 'a list of one text');
my $full = $t->complete(@P, return_token_ids => TRUE)->{choices}[0];
is(scalar @{ $full->{token_ids} }, 5, 'token_ids omits the end token');
my @ids = @{ $full->{prompt_token_ids} };
is(scalar @ids, 11, 'prompt_token_ids');
is($ids[-1], 7809, 'they end with the mask');
is($text->(prompt => \@ids), 'Wo ist die Datei?', 'token ids');
is($text->(prompt => [ @ids[ 0 .. 9 ] ]), 'Wo ist die Datei?', 'the mask is added to them');
is($text->(prompt => [ [ @ids[ 0 .. 9 ] ] ]), 'Wo ist die Datei?', 'a list of one list of ids');
is($text->(prompt => 'English: Where is the [MASK]? German: Wo ist die Datei?'), 'file', 'a blank is filled');
is($text->(prompt => $P . '[gMASK]'), 'Wo ist die Datei?', 'a gMASK of the user\'s own');
$j = $t->complete(prompt => '[MASK]', max_tokens => 2);
cmp_ok($j->{usage}{prompt_tokens}, '>=', 1, 'a lone mask is a prompt');
my $with = $t->complete(prompt => 'a [MASK] b', max_tokens => 1)->{usage}{prompt_tokens};
my $without = $t->complete(prompt => 'a [MASK] b', max_tokens => 1, parse_masks => FALSE);
cmp_ok($without->{usage}{prompt_tokens}, '>', $with, 'parse_masks false: [MASK] is text');
my $bare = $t->complete(prompt => 'a', max_tokens => 1, add_special_tokens => FALSE)->{usage};
is($t->complete(prompt => 'a', max_tokens => 1)->{usage}{prompt_tokens} - $bare->{prompt_tokens},
    1, 'add_special_tokens adds the mask') || diag(to_json($bare));

# max_tokens, stop, seed, mode

$j = $t->complete(@P, max_tokens => 2);
is($j->{choices}[0]{finish_reason}, 'length', 'max_tokens');
is($j->{usage}{completion_tokens}, 2, 'its count');
$j = $t->complete(@P, max_tokens => 0);
is_deeply([ @{ $j->{choices}[0] }{qw(text finish_reason)}, $j->{usage}{completion_tokens} ],
    [ '', 'length', 0 ], 'max_tokens 0');
is($t->complete(prompt => $P, temperature => 0, ignore_eos => TRUE)->{usage}{completion_tokens},
    16, 'the default of max_tokens is 16');
is($t->complete(@P, max_tokens => undef, ignore_eos => TRUE)->{usage}{completion_tokens}, 16,
    'so is that of null');
is($t->complete(@P, max_tokens => 40, ignore_eos => TRUE)->{usage}{completion_tokens}, 40,
    'ignore_eos goes on');

$j = $t->complete(@P, stop => ' die');
is_deeply([ @{ $j->{choices}[0] }{qw(text finish_reason stop_reason)} ],
    [ 'Wo ist', 'stop', ' die' ], 'a stop string');
$j = $t->complete(@P, stop => [ 'nowhere', 'st d' ]);
is_deeply([ @{ $j->{choices}[0] }{qw(text stop_reason)} ], [ 'Wo i', 'st d' ], 'one across tokens');
$j = $t->complete(@P, stop => [ 'st d' ], include_stop_str_in_output => TRUE);
is($j->{choices}[0]{text}, 'Wo ist d', 'include_stop_str_in_output');
$j = $t->complete(@P, stop => [ 'ist die', 'st die', 'e' ]);
is_deeply([ @{ $j->{choices}[0] }{qw(text stop_reason)} ], [ 'Wo ', 'ist die' ],
    'of stops that end together the longer wins');
is($t->complete(@P, stop => [])->{choices}[0]{text}, 'Wo ist die Datei?', 'no stops');

my @S = (prompt => 'This package provides', temperature => 1.5, max_tokens => 24);
my @a = map { $t->complete(@S, seed => 7)->{choices}[0]{text} } 1, 2;
is($a[0], $a[1], 'a seed repeats');
isnt($t->complete(@S, seed => 8)->{choices}[0]{text}, $a[0], 'another seed differs');
is($t->complete(@S, seed => 0)->{choices}[0]{text}, $t->complete(@S, seed => 0)->{choices}[0]{text},
    'seed 0 is a seed');
my @greedy = map { $t->complete(@S, @$_)->{choices}[0]{text} }
    [ temperature => 0 ], [ top_k => 1 ], [ top_p => 1e-9 ], [ min_p => 1 ];
is_deeply([ @greedy[ 1 .. 3 ] ], [ ($greedy[0]) x 3 ], 'top_k 1, small top_p, min_p 1 are greedy');
isnt($a[0], $greedy[0], 'which a sample is not');
my $uni = $t->complete(@P, mode => 'unidirectional', return_token_ids => TRUE);
is($t->complete(@P, mode => 'bidirectional')->{choices}[0]{text}, 'Wo ist die Datei?', 'mode bidirectional');
isnt(join(' ', @{ $uni->{choices}[0]{prompt_token_ids} }), "@ids", 'mode unidirectional is another prompt')
    || diag(to_json($uni));

# Log-probabilities

$j = $t->complete(@P, logprobs => 3)->{choices}[0];
my $lp = $j->{logprobs};
is_deeply([ sort keys %$lp ], [ qw(text_offset token_logprobs tokens top_logprobs) ], 'keys of logprobs');
my $n = @{ $lp->{tokens} };
is($n, 5, 'an entry a kept token');
is_deeply([ map { scalar @{ $lp->{$_} } } qw(text_offset token_logprobs top_logprobs) ], [ ($n) x 3 ],
    'equal lengths');
is(join('', @{ $lp->{tokens} }) =~ s/^ //r, $j->{text}, 'the tokens make the text');
is($lp->{text_offset}[0], 0, 'the first offset');
my @bad = grep { substr($j->{text}, $lp->{text_offset}[$_]) !~ /^ ?\Q@{[ $lp->{tokens}[$_] =~ s{^ }{}r ]}\E/ } 0 .. $n - 1;
is_deeply(\@bad, [], 'each token stands at its offset') || diag(to_json($lp));
is_deeply([ grep { $lp->{token_logprobs}[$_] != $lp->{top_logprobs}[$_]{ $lp->{tokens}[$_] } } 0 .. $n - 1 ],
    [], 'the chosen token\'s number is the same in both places');
is_deeply([ grep { my $k = keys %{ $lp->{top_logprobs}[$_] }; $k < 1 || $k > 4 } 0 .. $n - 1 ], [],
    'up to N + 1 in top_logprobs');
is_deeply([ grep { $_ > 0 || $_ < -20 } @{ $lp->{token_logprobs} } ], [], 'they are logarithms');
cmp_ok($lp->{token_logprobs}[0], '>', -0.7, 'the golden token is likely');
my $greedy = $t->complete(@P, logprobs => 0)->{choices}[0]{logprobs};
is_deeply([ map { scalar keys %$_ } @{ $greedy->{top_logprobs} } ], [ (1) x $n ],
    'logprobs 0: the chosen token alone');
is_deeply($greedy->{token_logprobs}, $lp->{token_logprobs}, 'with the same numbers');
my $lp20 = $t->complete(@P, logprobs => 20, max_tokens => 1)->{choices}[0]{logprobs}{top_logprobs}[0];
cmp_ok(scalar keys %$lp20, '>=', 15, 'twenty alternatives');
my $sum = 0;
$sum += exp $_ for values %$lp20;
ok($sum > 0.5 && $sum < 1.0001, "their probabilities sum below one ($sum)");
my $hot = $t->complete(@S, logprobs => 2, seed => 3)->{choices}[0]{logprobs};
ok(!(grep { !exists $hot->{top_logprobs}[$_]{ $hot->{tokens}[$_] } } 0 .. $#{ $hot->{tokens} }),
    'a sampled token is always in the list');

# Text that JSON must escape comes back whole

for my $p ("German: \"Zitat\" \\ /\t\nEnglish:", "\x{4f60}\x{597d} \x{1f600} \x{2028}:", "\x{7f}\x{1}x:") {
    my $r = $t->post($URI, { prompt => $p, max_tokens => 12, temperature => 0 });
    is($r->{status}, 200, 'a prompt with ' . to_json($p)) or diag($r->{body});
    ok(check_utf8($r->{body}), 'its answer is UTF-8');
}
my $code = 'English: "Return True if the list is empty." Python:';
is($text->(prompt => $code, max_tokens => 30), "def empty(self):\n    return self.is_empty()",
    'newlines and blanks of an answer');

# Neutral values of later fields

my %neutral = (n => 1, best_of => 1, echo => FALSE, frequency_penalty => 0, presence_penalty => 0.0,
    logit_bias => {}, suffix => undef, stop_token_ids => [], min_tokens => 0,
    allowed_token_ids => undef, bad_words => [], prompt_logprobs => undef, logprob_token_ids => undef,
    response_format => { type => 'text' }, structured_outputs => undef, use_beam_search => FALSE,
    num_beams => 1, length_penalty => 1.0, no_repeat_ngram_size => 0, repetition_penalty => 1,
    return_tokens_as_token_ids => FALSE, repetition_detection => undef, skip_special_tokens => TRUE,
    spaces_between_special_tokens => TRUE, truncate_prompt_tokens => undef, truncation_side => 'left',
    top_k => -1, top_p => 1, min_p => 0, stream_options => undef, user => 'me', stop => undef,
    seed => undef, logprobs => undef, cache_salt => undef, priority => 0, stream => FALSE,
    model => 'glm-demo-9m', return_token_ids => FALSE, request_id => undef, stream_interval => undef,
    parse_masks => TRUE, mode => 'bidirectional', add_special_tokens => TRUE, min_gen_length => 0);
for my $k (sort keys %neutral) {
    is($text->(prompt => $P, $k => $neutral{$k}), 'Wo ist die Datei?', "$k at its neutral value");
}
for my $k (grep { $_ !~ /^(model|prompt)$/ } sort keys %neutral) {
    is($text->(prompt => $P, $k => undef), 'Wo ist die Datei?', "$k null");
}
is($text->(%neutral, prompt => $P), 'Wo ist die Datei?', 'all of them together');
is($text->(prompt => $P, no_such_field => { a => [ 1 ] }), 'Wo ist die Datei?', 'an unknown field is ignored');
like($t->read_file('error.log'), qr/no_such_field/, 'with a line in the log');

# Later features

my %later = (response_format => { type => 'json_object' }, structured_outputs => { regex => 'a' },
    guided_regex => 'a', cache_salt => 'x');
for my $k (sort keys %later) {
    my $r = $t->post($URI, { @P, $k => $later{$k} });
    check_error($r, 501, "$k is for later", param => $k, type => 'not_implemented');
    is($r->{headers}{'x-should-retry'} // 'absent', 'false', "$k: x-should-retry");
}

# x-request-id

is($t->post($URI, { @P }, headers => [ 'X-Request-Id', 'My-id_1.2:3' ])->{headers}{'x-request-id'},
    'My-id_1.2:3', 'the client\'s x-request-id');
for my $bad ('a b', 'x' x 129, 'a"b', 'a/b') {
    my $id = $t->post($URI, { @P, max_tokens => 1 }, headers => [ 'X-Request-Id', $bad ])
        ->{headers}{'x-request-id'};
    like($id, qr/^[0-9a-f]{32}$/, 'not an insane one: ' . substr $bad, 0, 10);
}
like($t->complete(@P, request_id => 'abc')->{id}, qr/abc/, 'request_id is in the id');

# Content types

for my $type ('application/json; charset=utf-8', 'text/plain', 'application/x-www-form-urlencoded', undef) {
    my $c = $t->client;
    $c->request('POST', $URI, body => to_json({ @P }),
        headers => defined $type ? [ 'Content-Type', $type ] : []);
    is($c->response->{status}, 200, 'content type ' . ($type // 'absent'));
}

$t->idle(5, 'nothing is left');
$t->done;
