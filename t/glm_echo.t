# A prompt's log-probabilities that depend on how they are asked for, offsets that do
# not fit the text, several prompts or choices that the real engine answers apart
# from each other in another way than together.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine('--max-num-seqs', 16)->run->ready;
my $URI = '/v1/completions';
my @LISTS = qw(tokens token_logprobs top_logprobs text_offset);

# A prompt far beyond a stream's window, plain and streamed

my $P = 'file and folder, ' x 220;
for my $n (1, 3) {
    my %ask = (prompt => $P, echo => TRUE, logprobs => 20, max_tokens => 6, temperature => 0, n => $n);
    my $plain = $t->complete(%ask);
    my @c = $t->stream(%ask, stream_options => { include_usage => TRUE });
    my %sum;
    for my $c (map { @{ $_->{choices} } } @c) {
        my $s = $sum{ $c->{index} } //= { text => '', map { $_ => [] } @LISTS };
        $s->{text} .= $c->{text};
        push @{ $s->{$_} }, @{ $c->{logprobs}{$_} } for @LISTS;
    }
    for my $c (@{ $plain->{choices} }) {
        my ($s, $lp, $name) = ($sum{ $c->{index} }, $c->{logprobs}, "n $n, choice $c->{index}");
        is($s->{text}, $c->{text}, "$name: text");
        is_deeply($s->{$_}, $lp->{$_}, "$name: $_") for @LISTS;
        my @bad = grep {
            my $token = $lp->{tokens}[$_] =~ s/^ //r;
            substr($c->{text}, $lp->{text_offset}[$_]) !~ /^ ?\Q$token\E/
        } 0 .. $#{ $lp->{tokens} };
        is_deeply(\@bad, [], "$name: each token stands at its offset");
        is_deeply([ grep { $lp->{token_logprobs}[$_] != $lp->{top_logprobs}[$_]{ $lp->{tokens}[$_] } }
            1 .. $#{ $lp->{tokens} } ], [], "$name: one number in both places");
    }
    is_deeply($c[-1]{usage}, $plain->{usage}, "n $n: usage");
    is($plain->{usage}{completion_tokens}, 6 * $n, "n $n: its tokens");
}

# The same bits however it is asked

my $numbers = sub {
    my $l = $t->complete(prompt => $P, echo => TRUE, temperature => 0, @_)->{choices}[0]{logprobs}{token_logprobs};
    return [ @{$l}[ 0 .. 879 ] ];
};
my $want = $numbers->(logprobs => 0, max_tokens => 0);
is($want->[0], undef, 'the first has none');
is_deeply($numbers->(@$_), $want, "@$_") for [ logprobs => 1, max_tokens => 1 ], [ logprobs => 5, max_tokens => 0 ],
    [ logprobs => 20, max_tokens => 3, n => 2 ];
my $other = $t->complete(prompt => [ 'short', $P, 'another' ], echo => TRUE, logprobs => 1, max_tokens => 0);
is_deeply($other->{choices}[1]{logprobs}{token_logprobs}, $want, 'and beside others');
my $listed = $t->complete(prompt => $P, prompt_logprobs => 0, max_tokens => 1)->{choices}[0]{prompt_logprobs};
is_deeply([ undef, map { (values %$_)[0]{logprob} } @{$listed}[ 1 .. 879 ] ], $want, 'in prompt_logprobs, too');

# Who scores a prompt takes the last entry for the generated token, an end token too

my @ends = (prompt => [ 22, 8, 5, 3341, 42, 8, 851, 5412, 28 ], echo => TRUE, max_tokens => 1, temperature => 0);
my $ended = $t->complete(@ends, logprobs => 1, return_token_ids => TRUE)->{choices}[0];
is_deeply([ $ended->{finish_reason}, $ended->{logprobs}{tokens}[-1], scalar @{ $ended->{logprobs}{tokens} } ],
    [ 'stop', 'eop', 10 ], 'the end token has its entry');
is_deeply($ended->{token_ids}, [], 'and is no part of the answer');
my ($chunk) = map { $_->{choices}[0] } $t->stream(@ends, logprobs => 1);
is_deeply($chunk->{logprobs}, $ended->{logprobs}, 'streamed, too');

# Several prompts, several choices

my @P = ('English: Where is the file? German:', 'English: Save the file German:');
my %one = map { $_ => $t->complete(prompt => $_, temperature => 0) } @P;
my $two = $t->complete(prompt => \@P, temperature => 0);
is_deeply([ map { $_->{text} } @{ $two->{choices} } ], [ map { $one{$_}{choices}[0]{text} } @P ],
    'two prompts answer as one does');
is($two->{usage}{total_tokens}, $one{ $P[0] }{usage}{total_tokens} + $one{ $P[1] }{usage}{total_tokens}, 'usage');
my @n = map { $_->{text} } @{ $t->complete(prompt => $P[0], n => 4, seed => 3)->{choices} };
is($n[0], $t->complete(prompt => $P[0], seed => 3)->{choices}[0]{text}, 'the first of n is the only one of 1');
my %different = map { $_ => 1 } @n;
cmp_ok(scalar keys %different, '>', 1, 'the others differ');
my $best = $t->complete(prompt => $P[0], n => 2, best_of => 4, seed => 3);
is_deeply([ scalar @{ $best->{choices} }, $best->{usage}{completion_tokens} > 12 ], [ 2, 1 ], 'best_of');
my @most = @{ $t->complete(prompt => [ map { "number $_" } 1 .. 256 ], max_tokens => 1)->{choices} };
is_deeply([ map { $_->{index} } @most ], [ 0 .. 255 ], '256 prompts');
check_error($t->post($URI, { prompt => [ 'a', 'x ' x 3000, 'b' ] }), 400, 'one that is too long refuses all',
    code => 'context_length_exceeded', param => 'prompt');
check_error($t->post($URI, { prompt => [ [ 5 ], [ 7808, 5 ] ], echo => TRUE, logprobs => 1 }), 400,
    'a mask given as an id', param => 'prompt', like => qr/mask/);

# Much at once in a plain answer

my $big = $t->complete(prompt => 'a', n => 4, logprobs => 20, max_tokens => 200, ignore_eos => TRUE);
is_deeply([ map { scalar @{ $_->{logprobs}{tokens} } } @{ $big->{choices} } ], [ (200) x 4 ], 'a large plain answer');

$t->idle(5, 'nothing is left');
$t->done;
