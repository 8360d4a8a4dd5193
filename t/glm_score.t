# A score that is not the sum of its tokens, a best choice that is not the best, a choice
# that is lost or mixed with others, or a bad list of choices that disturbs others.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use List::Util qw(sum);

my $URI = '/v1/score';
my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 40000)->run->ready;

sub score {
    my (%body) = @_;
    my $r = $t->post($URI, { prompt => 'x', %body });
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    return json($r->{body});
}

# What reached the engine since the last look
my $at = 0;
sub sent {
    my $all = $t->read_file($log);
    my @lines = map { json($_) } split /\n/, substr $all, $at;
    $at = length $all;
    return @lines;
}

# The fake engine: a byte or an id each; id i has -(i % 8 + 1) / 8, twice that after nothing
sub lp { return map { -($_ % 8 + 1) / 8 } map { ref ? @$_ : unpack 'C*', $_ } @_ }

# The shape

my @choices = ('ab', 'cde', [ 1, 2, 300 ], "\x{e9}");
utf8::encode(my $e = "\x{e9}");
my $j = score(choices => \@choices);
is_deeply([ sort keys %$j ], [ qw(best choices created id model object system_fingerprint usage) ], 'keys of the answer');
is($j->{object}, 'score', 'object');
is($j->{model}, 'fake-model', 'model');
is_deeply([ sort keys %{ $j->{choices}[0] } ], [ qw(index logprob score text token_ids token_logprobs) ], 'keys of a choice');
is_deeply([ map { $_->{index} } @{ $j->{choices} } ], [ 0 .. 3 ], 'in the order of the request');
is_deeply([ map { $_->{text} } @{ $j->{choices} } ], [ 'ab', 'cde', "\x{1}\x{2}t300 ", "\x{e9}" ], 'texts');
is_deeply($j->{choices}[1]{token_ids}, [ 99, 100, 101 ], 'token_ids of a text');
is_deeply($j->{choices}[2]{token_ids}, [ 1, 2, 300 ], 'of ids');
is_deeply($j->{choices}[$_]{token_logprobs}, [ lp(($choices[0], $choices[1], $choices[2], $e)[$_]) ], "token_logprobs, $_")
    for 0 .. 3;
is_deeply([ map { $_->{logprob} } @{ $j->{choices} } ], [ map { sum(lp($_)) } @choices[ 0 .. 2 ], $e ], 'logprob is their sum');
is_deeply([ map { $_->{score} } @{ $j->{choices} } ], [ map { $_->{logprob} } @{ $j->{choices} } ], 'and so is the score');
is($j->{best}, 0, 'best');
is($j->{usage}{completion_tokens}, 10, 'usage');
my ($s, @more) = sent();
is_deeply([ @$s{qw(op mode n max_tokens)}, scalar @more ], [ 3, 0, 1, 16, 0 ], 'SCORE is what is asked, once');
is_deeply($s->{25}, [ 'ab', 'cde', [ 1, 2, 300 ], "\x{e9}" ], 'the choices that reach the engine');
is($s->{flags} & 0x2000, 0, '[MASK] by default');

# normalize, unconditional, mask, mode

is_deeply([ map { $_->{score} } @{ score(choices => \@choices, normalize => 'token')->{choices} } ],
    [ map { sum(lp($_)) / scalar(lp($_)) } @choices[ 0 .. 2 ], $e ], 'normalize token');
is_deeply([ map { $_->{score} } @{ score(choices => \@choices, normalize => 'byte')->{choices} } ],
    [ map { sum(lp($_->[0])) / $_->[1] } [ 'ab', 2 ], [ 'cde', 3 ], [ [ 1, 2, 300 ], 7 ], [ $e, 2 ] ], 'normalize byte');
is(score(choices => [ 'gg', 'a' ], normalize => 'none')->{best}, 1, 'the shorter one is best without');
is(score(choices => [ 'aaaa', 'b' ], normalize => 'token')->{best}, 0, 'and the likelier one with it');
sent();
$j = score(choices => \@choices, unconditional => TRUE);
is_deeply([ map { $_->{score} } @{ $j->{choices} } ], [ map { -sum(lp($_)) } @choices[ 0 .. 2 ], $e ],
    'unconditional: less what it has after nothing') || diag(to_json($j));
is_deeply([ map { $_->{logprob} } @{ $j->{choices} } ], [ map { sum(lp($_)) } @choices[ 0 .. 2 ], $e ], 'logprob stays');
is($j->{best}, 1, 'the best is that of the score');
is($j->{usage}{completion_tokens}, 20, 'both are counted');
my @s = sent();
is_deeply([ map { [ $_->{group_index}, $_->{group_count}, $_->{1} ] } @s ], [ [ 0, 2, 'x' ], [ 1, 2, '' ] ],
    'two of a group, the second without a prompt') || diag(to_json(\@s));
is($s[0]{group}, $s[1]{group}, 'of one group');
is(score(prompt => '', choices => [ 'a' ], unconditional => TRUE)->{choices}[0]{score}, 0, 'an empty prompt beside itself');
is(score(choices => \@choices, unconditional => TRUE, normalize => 'token')->{choices}[1]{score}, -sum(lp('cde')) / 3,
    'unconditional and normalize');
sent();
score(choices => [ 'a' ], mask => '[gMASK]', mode => 'unidirectional');
($s) = sent();
is_deeply([ $s->{flags} & 0x2000, $s->{mode} ], [ 0x2000, 1 ], 'mask [gMASK], mode unidirectional');
score(prompt => [ 97, 98 ], choices => [ [ 5 ], 'b' ], priority => 3);
($s) = sent();
is_deeply([ $s->{3}, $s->{25}, $s->{priority} ], [ [ 97, 98 ], [ [ 5 ], 'b' ], 3 ], 'ids as the prompt');
score(choices => [ '[MASK]' ], parse_masks => FALSE);
($s) = sent();
is_deeply([ $s->{2}, $s->{25} ], [ 'x', [ '[MASK]' ] ], 'parse_masks false: masks are text');

# Many, and long ones: the sum is made of doubles

$j = score(choices => [ map { "c$_" } 1 .. 1000 ]);
is(scalar @{ $j->{choices} }, 1000, 'a thousand choices');
is_deeply([ map { $_->{text} } @{ $j->{choices} }[ 0, 499, 999 ] ], [ 'c1', 'c500', 'c1000' ], 'each its own');
$j = score(choices => [ 'aaaaaaab' x 4000 ]);
is($j->{choices}[0]{logprob}, sum(lp('aaaaaaab' x 4000)), '32,000 tokens');
cmp_ok($j->{choices}[0]{logprob}, '<', -7999, 'a sum is not cut as a log-probability is');

# Bad requests, while a stream runs beside them

my $beside = $t->beside(prompt => 'fake: tokens=1500 delay=2', max_tokens => 1500);
$t->wait_stat('num_requests_running', 1, 10);
my @c = (choices => [ 'a' ]);
my @bad = (
    [ { prompt => 'x', choices => [ ('a') x 100_000 ] }, 'choices', qr/1000 entries, not 100000/, '100,000 choices' ],
    [ { prompt => 'x', choices => [ 'a', '' ] }, 'choices', qr/choices\[1\] is empty/, 'an empty choice' ],
    [ { prompt => 'x', choices => [ [] ] }, 'choices', qr/choices\[0\] is empty/, 'a choice of no ids' ],
    [ { prompt => 'x', choices => [] }, 'choices', qr/1 to 1000/, 'no choice' ],
    [ { prompt => 'x' }, 'choices', qr/required/, 'choices absent' ],
    [ { prompt => 'x', choices => undef }, 'choices', qr/required/, 'choices null' ],
    [ { prompt => 'x', choices => 'a' }, 'choices', qr/list/, 'choices that are a text' ],
    [ { prompt => 'x', choices => [ 7 ] }, 'choices', qr/string/, 'a choice that is a number' ],
    [ { prompt => 'x', choices => [ [ 1.5 ] ] }, 'choices', qr/integers/, '1.5 among ids' ],
    [ { prompt => 'x', choices => [ [ 20000 ] ] }, 'choices', qr/19999/, 'an unknown id' ],
    [ { prompt => 'x', choices => [ [ -1 ] ] }, 'choices', qr/0 to/, 'a negative id' ],
    [ { prompt => 'x', choices => [ "a\0" ] }, 'choices', qr/U\+0000/, 'NUL in a choice' ],
    [ { prompt => 'x', choices => [ 'a' x 300_000 ] }, 'choices', qr/262144/, 'a choice longer than glm_max_prompt' ],
    (map { [ { prompt => 'x', choices => [ 'a', "b $_" ] }, 'choices', qr/choices\[1\] holds a mask/, "$_ in a choice" ] }
        '[MASK]', '[gMASK]', '[sMASK]'),
    [ { choices => [ 'a' ] }, 'prompt', qr/required/, 'no prompt' ],
    [ { prompt => '', @c }, 'prompt', qr/empty/, 'an empty prompt' ],
    [ { prompt => [ 'a', 'b' ], @c }, 'prompt', qr/integers/, 'several prompts' ],
    [ { prompt => 'x', @c, normalize => 'length' }, 'normalize', qr/byte/, 'normalize length' ],
    [ { prompt => 'x', @c, normalize => TRUE }, 'normalize', qr/byte/, 'normalize true' ],
    [ { prompt => 'x', @c, mask => '[sMASK]' }, 'mask', qr/gMASK/, 'mask [sMASK]' ],
    [ { prompt => 'x', @c, mode => 'causal' }, 'mode', qr/unidirectional/, 'mode causal' ],
    [ { prompt => 'x', @c, stream => TRUE }, 'stream', qr/streamed/, 'stream' ],
    [ { prompt => 'x', @c, unconditional => 1 }, 'unconditional', qr/true or false/, 'unconditional 1' ],
    [ '{"prompt":"x","choices":["a"],"choices":["b"]}', undef, qr/duplicate/i, 'a key twice' ],
);
for (@bad) {
    my ($body, $param, $like, $name) = @$_;
    check_error($t->post($URI, $body), 400, $name, param => $param, like => $like);
}
check_error($t->post($URI, { prompt => 'x', @c, model => 'y' }), 404, 'another model', code => 'model_not_found');
check_error($t->post($URI, { prompt => 'fake: error=400 code=context_length_exceeded param=choices message=Too_long', @c }), 400,
    'a choice longer than the context', param => 'choices', code => 'context_length_exceeded');
check_error($t->post($URI, { prompt => 'fake: error=501 code=not_implemented param=choices', @c }), 501, 'an engine that cannot',
    type => 'not_implemented');
check_error($t->get($URI), 405, 'GET');
ok($t->stat('num_requests_running'), 'the stream beside still runs');
my ($text, $longest) = $beside->();
is($text, join('', map { 't' . (256 + $_ % 1000) . ' ' } 0 .. 1499), 'it has every token');
cmp_ok($longest // 99, '<', 10 * GLM::Test::patience(), 'and was never held up');

# A client that leaves before the answer

my $c = $t->post($URI, { prompt => 'fake: first=5000', @c }, start => 1);
$t->wait_stat('num_requests_running', 1, 10);
$c->close;
$t->idle(10, 'a client that leaves frees all');
$t->done;
