# A field of /v1/completions that reaches the engine changed or not at all, or an
# answer to echo, prompt_logprobs or stream_interval of another shape.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 512, '--default', 'tokens=2')->run->ready;
my $URI = '/v1/completions';

# The SUBMIT of a request that is accepted: fixed fields by name, sections by type
my $at = length $t->read_file($log);
sub sent {
    my (%body) = @_;
    my $r = $t->post($URI, { prompt => 'a', %body });
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    my $all = $t->read_file($log);
    my ($line) = split /\n/, substr $all, $at;
    $at = length $all;
    return json($line);
}

my $s = sent();
is_deeply([ sort keys %$s ], [ sort qw(op mode flags n best_of max_tokens truncate window group group_index
    group_count priority 1 16 28) ], 'a request without fields has no sections for them');
is_deeply([ @$s{qw(op mode flags n best_of max_tokens truncate priority)} ], [ 1, 0, 2, 1, 0, 16, 0, 0 ], 'neutral');
my %off = (flags => 0, seed => 0, temperature => 1, top_p => 1, min_p => 0, top_k => 0, presence => 0,
    frequency => 0, repetition => 1, logprobs => -1, prompt_logprobs => -1, min_tokens => 0, beams => 1,
    length_penalty => 1, no_repeat_ngram => 0);
is_deeply($s->{16}, \%off, 'sampling');

# Numbers

my @number = (
    [ presence_penalty => 1.5, presence => 1.5 ], [ presence_penalty => -2, presence => -2 ],
    [ frequency_penalty => 0.25, frequency => 0.25 ], [ repetition_penalty => 1.25, repetition => 1.25 ],
    [ min_tokens => 3, min_tokens => 3 ], [ min_gen_length => 4, min_tokens => 4 ],
    [ logprobs => 7, logprobs => 7 ],
);
is_deeply(sent($_->[0] => $_->[1])->{16}, { %off, $_->[2] => $_->[3] }, "$_->[0] $_->[1]") for @number;
is(sent(min_tokens => 2, min_gen_length => 2)->{16}{min_tokens}, 2, 'both names, equal');
check_error($t->post($URI, { prompt => 'a', min_tokens => 2, min_gen_length => 3 }), 400, 'and unequal',
    param => 'min_gen_length');
check_error($t->post($URI, { prompt => 'a', min_gen_length => 17 }), 400, 'min_gen_length over max_tokens',
    param => 'min_gen_length', like => qr/16/);
$at = length $t->read_file($log);
is(sent(priority => -5)->{priority}, -5, 'priority');
is(sent(priority => 9007199254740993)->{priority}, 9007199254740993, 'priority of 64 bits');
is(sent(truncate_prompt_tokens => 5)->{truncate}, 5, 'truncate_prompt_tokens');
is(sent(truncate_prompt_tokens => -1)->{truncate}, -1, 'to the model\'s length');
is(sent(truncation_side => 'right', truncate_prompt_tokens => 5)->{flags}, 0x402, 'truncation_side right');
is(sent(truncation_side => 'left')->{flags}, 2, 'and left');
is(sent(skip_special_tokens => FALSE)->{flags}, 0x82, 'skip_special_tokens false');
is(sent(skip_special_tokens => TRUE)->{flags}, 2, 'and true');
is(sent(spaces_between_special_tokens => FALSE)->{flags}, 2, 'spaces_between_special_tokens: there are none');

# Lists

is_deeply(sent(stop_token_ids => [ 5, 19999 ])->{18}, [ 5, 19999 ], 'stop_token_ids');
is_deeply(sent(logit_bias => { 7 => -100, 19999 => 2.5 })->{19}, { 7 => -100, 19999 => 2.5 }, 'logit_bias');
is_deeply(sent(allowed_token_ids => [ 1, 2, 3 ])->{20}, [ 1, 2, 3 ], 'allowed_token_ids');
is_deeply(sent(bad_words => [ 'one', ' two', "\x{4f60}" ])->{21}, [ 'one', ' two', "\x{4f60}" ], 'bad_words');
is_deeply(sent(logprob_token_ids => [ 9, 8 ], logprobs => 0)->{22}, [ 9, 8 ], 'logprob_token_ids');
is_deeply(sent(repetition_detection => { max_pattern_size => 8, min_pattern_size => 2, min_count => 3 })->{23},
    [ 2, 8, 3 ], 'repetition_detection');
is_deeply(sent(repetition_detection => { max_pattern_size => 8, min_count => 3 })->{23}, [ 1, 8, 3 ],
    'its default');
$s = sent(stop => [ 'x', 'yz' ], bad_words => [ 'b' ], stop_token_ids => [ 4 ], logit_bias => { 1 => 1 },
    allowed_token_ids => [ 1 ], seed => 3, n => 2);
is_deeply([ @$s{ 17 .. 21 } ], [ [ 'x', 'yz' ], [ 4 ], { 1 => 1 }, [ 1 ], [ 'b' ] ], 'all together');
my @empty = ([ stop_token_ids => [] ], [ logit_bias => {} ], [ bad_words => [] ],
    [ repetition_detection => { max_pattern_size => 0 } ], [ repetition_detection => {} ]);
for (@empty) {
    my ($field, $s) = ($_->[0], sent(@$_));
    ok(!grep({ exists $s->{$_} } 18 .. 23), "$field: none is none");
}

my @bad = (
    [ stop_token_ids => [ 20000 ], qr/20000/ ], [ stop_token_ids => [ -1 ] ], [ logit_bias => { 20000 => 1 } ],
    [ logit_bias => { AI => 1 } ], [ logit_bias => { 99999999999 => 1 } ], [ allowed_token_ids => [ 5, 20000 ] ],
    [ allowed_token_ids => [] ], [ bad_words => [ '' ] ], [ bad_words => [ 1 ] ], [ bad_words => 'a' ],
    [ logprob_token_ids => [ 1 ], qr/needs logprobs/ ], [ repetition_detection => { max_pattern_size => 4 } ],
    [ repetition_detection => { max_pattern_size => 'x' } ], [ repetition_detection => { max_pattern_size => 2,
        min_pattern_size => 3, min_count => 2 } ], [ repetition_detection => [] ], [ prompt_logprobs => -1 ],
    [ prompt_logprobs => 21 ], [ stream_interval => 0 ], [ repetition_penalty => 1e39 ], [ echo => 1 ],
);
check_error($t->post($URI, { prompt => 'a', @$_[ 0, 1 ] }), 400, "$_->[0] " . to_json($_->[1]), param => $_->[0],
    $_->[2] ? (like => $_->[2]) : ()) for @bad;
check_error($t->post($URI, { prompt => 'a', logprobs => 1, logprob_token_ids => [ 1 .. 21 ] }), 400,
    '21 logprob_token_ids', param => 'logprob_token_ids', like => qr/20/);
$at = length $t->read_file($log);

# Stops

my $j = $t->complete(prompt => 'fake: tokens=2 stopid=77', stop_token_ids => [ 77 ]);
is_deeply([ @{ $j->{choices}[0] }{qw(finish_reason stop_reason)} ], [ 'stop', 77 ], 'stop_reason: an id');
like(to_json($j->{choices}[0]), qr/"stop_reason":77\b/, 'as a number');

# Echo

my $P = 'fake: tokens=2 text=xy';
$at = length $t->read_file($log);
$s = sent(prompt => $P, echo => TRUE);
is_deeply([ $s->{flags}, $s->{mode}, $s->{16}{prompt_logprobs} ], [ 0x06, 0, -1 ], 'echo alone keeps the mode');
$j = $t->complete(prompt => $P, echo => TRUE);
is($j->{choices}[0]{text}, "${P}xyxy", 'prompt and completion');
$j = $t->complete(prompt => $P, echo => TRUE, max_tokens => 0);
is_deeply([ @{ $j->{choices}[0] }{qw(text finish_reason)} ], [ $P, 'length' ], 'max_tokens 0');
$j = $t->complete(prompt => [ $P, "$P  " ], echo => TRUE, n => 2);
is_deeply([ map { $_->{text} } @{ $j->{choices} } ], [ ("${P}xyxy") x 2, ("$P  xyxy") x 2 ], 'of each prompt');
$at = length $t->read_file($log);
$s = sent(prompt => $P, echo => TRUE, logprobs => 2);
is_deeply([ $s->{flags}, $s->{mode}, @{ $s->{16} }{qw(logprobs prompt_logprobs)} ], [ 0x06, 1, 2, 2 ],
    'with logprobs it is unidirectional');

my $n = length $P;
sub check_echo {
    my ($c, $name, $top) = @_;
    my $lp = $c->{logprobs};
    is(scalar @{ $lp->{$_} }, $n + 2, "$name: $_") for qw(tokens token_logprobs top_logprobs text_offset);
    is(join('', @{ $lp->{tokens} }[ 0 .. $n - 1 ]), $P, "$name: the prompt's tokens");
    is_deeply([ $lp->{token_logprobs}[0], $lp->{top_logprobs}[0] ], [ undef, undef ], "$name: the first has none");
    is_deeply([ @{ $lp->{token_logprobs} }[ 1, 2, $n ] ], [ -0.625, -0.75, -0.25 ], "$name: numbers");
    is_deeply([ @{ $lp->{text_offset} }[ 0, 1, $n, $n + 1 ] ], [ 0, 1, $n, $n + 1 ], "$name: offsets go on");
    is($lp->{top_logprobs}[1]{ $lp->{tokens}[1] }, $lp->{token_logprobs}[1], "$name: the chosen one in top");
    is(scalar keys %{ $lp->{top_logprobs}[1] }, $top, "$name: $top in top");
}
check_echo($t->complete(prompt => $P, echo => TRUE, logprobs => 2)->{choices}[0], 'logprobs 2', 2);
check_echo($t->complete(prompt => $P, echo => TRUE, logprobs => 1)->{choices}[0], 'logprobs 1', 2);
check_echo($t->complete(prompt => $P, echo => TRUE, logprobs => 0)->{choices}[0], 'logprobs 0', 1);
check_echo($t->complete(prompt => $P, echo => TRUE, logprobs => 0, prompt_logprobs => 5)->{choices}[0],
    'beside prompt_logprobs', 1);
$j = $t->complete(prompt => $P, echo => TRUE, logprobs => 1, max_tokens => 0)->{choices}[0]{logprobs};
is_deeply([ map { scalar @{ $j->{$_} } } qw(tokens token_logprobs top_logprobs text_offset) ], [ ($n) x 4 ],
    'max_tokens 0: the prompt alone');

my %sum = (text => '', map { $_ => [] } qw(tokens token_logprobs top_logprobs text_offset));
my $chunks = 0;
for my $c (map { $_->{choices}[0] } $t->stream(prompt => $P, echo => TRUE, logprobs => 2)) {
    $chunks++;
    $sum{text} .= $c->{text};
    push @{ $sum{$_} }, @{ $c->{logprobs}{$_} } for qw(tokens token_logprobs top_logprobs text_offset);
}
is($sum{text}, "${P}xyxy", 'streamed: the text');
cmp_ok($chunks, '>=', 2, 'in chunks');
check_echo({ logprobs => \%sum }, 'streamed', 2);

for ([ echo => TRUE, logprobs => 1 ], [ prompt_logprobs => 0 ]) {
    my @f = @$_;
    check_error($t->post($URI, { prompt => 'a', @f, mode => 'bidirectional' }), 400,
        "$f[0] and bidirectional", param => 'mode', like => qr/unidirectional/);
    check_error($t->post($URI, { prompt => "a $_ b", @f }), 400, "$f[0] and $_", param => 'prompt', like => qr/mask/)
        for '[MASK]', '[gMASK]', '[sMASK]';
    check_error($t->post($URI, { prompt => [ 'a', 'b [MASK]' ], @f }), 400, "$f[0] and a mask in the second",
        param => 'prompt');
    $at = length $t->read_file($log);
    is(sent(prompt => 'a [MASK]', @f, parse_masks => FALSE)->{mode}, 1, "$f[0]: a mask that is text");
}

# prompt_logprobs

$j = $t->complete(prompt => 'fake: tokens=1', prompt_logprobs => 2)->{choices}[0];
is(scalar @{ $j->{prompt_logprobs} }, 14, 'prompt_logprobs: an entry a token');
is($j->{prompt_logprobs}[0], undef, 'the first is null');
is_deeply($j->{prompt_logprobs}[1], { 500 => { logprob => -0.375, rank => 1, decoded_token => 't500 ' },
    97 => { logprob => -0.625, rank => 2, decoded_token => 'a' } }, 'the shape') || diag(to_json($j));
is_deeply($t->complete(prompt => 'fake: tokens=1', prompt_logprobs => 0)->{choices}[0]{prompt_logprobs}[2],
    { 107 => { logprob => -0.75, rank => undef, decoded_token => 'k' } }, 'prompt_logprobs 0');
is($j->{logprobs}, undef, 'no logprobs beside it');
unlike($j->{text}, qr/fake/, 'and no echo');
check_error($t->post($URI, { prompt => 'a', prompt_logprobs => 1, stream => TRUE }), 400, 'not in a stream',
    param => 'prompt_logprobs');

# return_tokens_as_token_ids

$j = $t->complete(prompt => $P, logprobs => 2, return_tokens_as_token_ids => TRUE)->{choices}[0]{logprobs};
is_deeply($j->{tokens}, [ 'token_id:256', 'token_id:257' ], 'return_tokens_as_token_ids');
is_deeply($j->{top_logprobs}[0], { 'token_id:256' => -0.25, 'token_id:1001' => -1.25 }, 'in top_logprobs, too');

# stream_interval, continuous_usage_stats

sub lengths { return [ map { length $_->{choices}[0]{text} } $t->stream(@_) ] }
is_once { lengths(prompt => 'fake: tokens=11 delay=5 text=z', stream_interval => 4) } [ 1, 4, 4, 2 ], 'stream_interval 4';
is_once { lengths(prompt => 'fake: tokens=5 delay=5 text=z', stream_interval => 1000) } [ 1, 4 ], 'first and last at once';
is_once { [ map { scalar @{ $_->{choices}[0]{token_ids} } } $t->stream(prompt => 'fake: tokens=6 delay=5 text=z',
    stream_interval => 3, logprobs => 0, return_token_ids => TRUE) ] } [ 1, 3, 2 ], 'ids go with their text';

my @c;
is_once {
    @c = $t->stream(prompt => 'fake: tokens=3 delay=5', stream_options => { include_usage => TRUE, continuous_usage_stats => TRUE });
    [ map { $_->{usage}{completion_tokens} } grep { @{ $_->{choices} } } @c ]
} [ 1, 2, 3, 3 ], 'continuous_usage_stats, with the end again';
is($c[0]{usage}{total_tokens}, $c[0]{usage}{prompt_tokens} + 1, 'with sums');
is_deeply($c[-1]{choices}, [], 'and the last chunk');
is($c[-1]{usage}{completion_tokens}, 3, 'with all');
@c = $t->stream(prompt => 'fake: tokens=3', stream_options => { continuous_usage_stats => TRUE });
ok(!grep({ exists $_->{usage} } @c), 'only with include_usage');

# What an engine refuses is passed on

my $r = $t->post($URI, { prompt => 'fake: error=501 code=not_implemented param=bad_words', bad_words => [ 'a' ] });
check_error($r, 501, 'a field that the engine has not', param => 'bad_words', type => 'not_implemented');
is($r->{headers}{'x-should-retry'}, 'false', 'and will not have soon');

$t->idle(5, 'nothing is left');
$t->done;
