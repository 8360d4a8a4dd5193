# Scores, beams and blanks that are not those of the original any more, somewhere between
# the HTTP byte and the HTTP byte: goldens of both models, through the API.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

sub golden { return json(GLM::Test->read_file("$FindBin::Bin/data/$_[0]")) }

my $demo = golden('demo/goldens.json');
my $d = GLM::Test->new->engine('--max-num-seqs', 16)->run->ready;
my $m = GLM::Test->new(model => "$FindBin::Bin/data/glm-mini-random")->engine('--max-num-seqs', 16)->run->ready;

sub ask {
    my ($t, $uri, $body) = @_;
    my $r = $t->post($uri, $body);
    die "$uri $r->{status} $r->{body}\n" if $r->{status} != 200;
    return json($r->{body});
}
sub near {
    my ($got, $want, $by, $name) = @_;
    my @bad = grep { !defined $got->[$_] || abs($got->[$_] - $want->[$_]) > $by } 0 .. $#$want;
    return ok(!@bad && @$got == @$want, $name) || diag("got @$got, want @$want");
}

# Scores of the demo model: its conventions are those of a completion (an eos behind what
# is behind the mask), so the prompt goes as ids

for my $s (@{ $demo->{score} }) {
    my @text = map { $_->{text} } @{ $s->{choices} };
    my $j = ask($d, '/v1/score', { prompt => $s->{prompt_ids}, choices => \@text, mask => '[gMASK]' });
    is_deeply([ map { $_->{token_ids} } @{ $j->{choices} } ], [ map { $_->{ids} } @{ $s->{choices} } ], "$s->{prompt}: ids");
    near([ map { @{ $_->{token_logprobs} } } @{ $j->{choices} } ], [ map { @{ $_->{logprobs} } } @{ $s->{choices} } ], 1e-4,
        "$s->{prompt}: token_logprobs");
    near([ map { $_->{logprob} } @{ $j->{choices} } ], [ map { $_->{logprob} } @{ $s->{choices} } ], 5e-4, "$s->{prompt}: logprob");
    is($j->{best}, $s->{best}, "$s->{prompt}: best");
    next if $s->{prompt} =~ /MASK/;
    my $k = ask($d, '/v1/score', { prompt => $s->{prompt}, choices => [ map { $_->{ids} } @{ $s->{choices} } ], mask => '[gMASK]' });
    near([ map { $_->{logprob} } @{ $k->{choices} } ], [ map { $_->{logprob} } @{ $j->{choices} } ], 0, "$s->{prompt}: by text and ids");
    is_deeply([ map { $_->{text} } @{ $k->{choices} } ], \@text, "$s->{prompt}: texts of ids");
}

# Of the random model: [MASK] and [gMASK], in the text or appended, one token and several

for my $c (grep { !$_->{unified_multitask_encoding} } @{ golden('goldens/glm-mini-random/cond_log_prob.json') }) {
    for my $i (0 .. $#{ $c->{samples} }) {
        my $s = $c->{samples}[$i];
        my $j = ask($m, '/v1/score', { prompt => $s->{text}, choices => $s->{choices},
            mask => $c->{use_task_mask} ? '[gMASK]' : '[MASK]' });
        near([ map { $_->{logprob} } @{ $j->{choices} } ], $s->{log_probs}, 5e-4, "$c->{name} $i");
    }
}

# Beams; [MASK] without consider_end is not what the programs do

my %seen;
for my $c (grep { $_->{settings}{consider_end} && @{ $_->{rounds} } == 1 } @{ golden('goldens/glm-mini-random/beam.json') }) {
    my $s = $c->{settings};
    my $n = $s->{num_beams};
    my $max = 0;
    for (@{ $c->{rounds}[0]{beams} }) { $max = @{ $_->{ids} } if @{ $_->{ids} } > $max }
    my %ask = (prompt => $c->{prompt_ids}, num_beams => $n, n => $n, max_tokens => $max, return_token_ids => TRUE,
        map { ($_ => $s->{$_}) } qw(length_penalty no_repeat_ngram_size min_gen_length));
    $ask{no_repeat_ngram_size} = undef, $ask{use_beam_search} = TRUE if $n == 1;
    my $j = ask($m, '/v1/completions', \%ask);
    my @want = @{ $c->{rounds}[0]{beams} };
    is_deeply([ map { $_->{token_ids} } @{ $j->{choices} } ], [ map { $_->{ids} } @want ], "$c->{name}: ids");
    next if $n == 1;
    near([ map { $_->{score} } @{ $j->{choices} } ], [ map { $_->{penalized_score} } @want ], 1e-3, "$c->{name}: scores");
    my $r = $m->post('/v1/completions', { %ask, stream => TRUE }, start => 1);
    $r->read_head;
    is_deeply([ map { $_->{choices}[0]{token_ids} } data_events($r->events) ], [ map { $_->{ids} } @want ], "$c->{name}: streamed");
    $seen{$n}++;
}
cmp_ok(scalar keys %seen, '>=', 3, 'widths');

$_->idle(10, 'nothing is left') for $d, $m;
$d->done;
