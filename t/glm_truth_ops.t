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

# Unconditional: less what the choices have after a mask alone

for my $mask ('[MASK]', '[gMASK]') {
    my %b = (choices => [ 'open', 'empty', 'Wo ist der Hund?' ], mask => $mask);
    my $lp = sub { return map { $_->{logprob} } @{ ask($d, '/v1/score', { %b, prompt => $_[0] })->{choices} } };
    my ($p, @alone) = ("The file is $mask.", $lp->($mask));
    my @want = map { $_ - shift @alone } $lp->($p);
    near([ map { $_->{score} } @{ ask($d, '/v1/score', { %b, prompt => $p, unconditional => TRUE })->{choices} } ], \@want, 1e-4,
        "unconditional, $mask");
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

my $chat = ask($d, '/v1/chat/completions', { messages => [ { role => 'user', content => 'Where is the file?' } ], max_tokens => 6,
    num_beams => 3, n => 3 });
my @score = map { $_->{score} } @{ $chat->{choices} };
is_deeply(\@score, [ sort { $b <=> $a } @score ], 'a chat by beams: three, best first') || diag(to_json($chat));
is(scalar @score, 3, 'a chat by beams');

# Two blanks by beams: the second goes on from the best of the first

my ($two) = grep { @{ $_->{rounds} } == 2 } @{ golden('goldens/glm-mini-random/beam.json') };
my $max = @{ $two->{rounds}[0]{beams}[0]{ids} };
my $j = ask($m, '/v1/infill', { prompt => $two->{prompt_ids}, num_beams => 4, n => 4, max_tokens => $max,
    no_repeat_ngram_size => $two->{settings}{no_repeat_ngram_size} });
is_deeply([ map { $_->{blanks}[0]{token_ids} } @{ $j->{choices} } ], [ ($two->{rounds}[0]{beams}[0]{ids}) x 4 ],
    "$two->{name}: each candidate has the best first fill");

# Blanks of the demo model, by text and by ids, plain and streamed

my %fill = (temperature => 0, max_tokens => 32);
sub streamed {
    my ($t, $body) = @_;
    my $c = $t->post('/v1/infill', { %$body, stream => TRUE }, start => 1);
    die "no stream\n" if $c->read_head->{status} != 200;
    my (@text, @ids, $whole);
    for (map { $_->{choices}[0] } data_events($c->events)) {
        if (!defined $_->{blank}) {
            $whole = $_->{text};
            next;
        }
        $text[ $_->{blank} ] .= $_->{text};
        push @{ $ids[ $_->{blank} ] }, @{ $_->{token_ids} };
    }
    return ($whole, \@text, \@ids);
}
for my $b (@{ $demo->{blanks} }) {
    my @want = map { my @ids = @$_; pop @ids; \@ids } @{ $b->{fill_ids} };
    my $tokens = 0;
    $tokens += @$_ for @{ $b->{fill_ids} };
    my @ids = @{ $b->{prompt_ids} };
    pop @ids if $ids[-1] == 2;                    # the eos is added
    for my $prompt ($b->{prompt}, \@ids) {
        my $name = $b->{prompt} . (ref $prompt ? ' by ids' : '');
        my $j = ask($d, '/v1/infill', { %fill, prompt => $prompt });
        my $c = $j->{choices}[0];
        is($c->{text}, $b->{text}, "$name: text");
        is_deeply([ map { $_->{text} } @{ $c->{blanks} } ], $b->{fills}, "$name: fills");
        is_deeply([ map { $_->{token_ids} } @{ $c->{blanks} } ], \@want, "$name: ids");
        is_deeply([ map { substr $c->{text}, $_->{start}, $_->{end} - $_->{start} } @{ $c->{blanks} } ], $b->{fills}, "$name: places");
        is($j->{usage}{completion_tokens}, $tokens, "$name: completion_tokens");
        is_deeply([ streamed($d, { %fill, prompt => $prompt, return_token_ids => TRUE }) ], [ $b->{text}, $b->{fills}, \@want ],
            "$name: streamed");
    }

    # one blank is what a completion fills, and what a suffix makes

    next if @want > 1;
    is($d->complete(%fill, prompt => $b->{prompt})->{choices}[0]{text}, $b->{fills}[0], "$b->{prompt}: a completion");
    my ($before, $after) = split /\[MASK\]/, $b->{prompt}, 2;
    next if !length $after;
    my $c = $d->complete(%fill, prompt => $before, suffix => $after, return_token_ids => TRUE, echo => TRUE)->{choices}[0];
    is_deeply($c->{token_ids}, $want[0], "$b->{prompt}: a suffix");
    unlike($c->{text}, qr/\Q$after\E/, "$b->{prompt}: the suffix is not echoed") if length $after > 3;
    is(json($d->post('/infill', { prompt => $before, input_suffix => $after, n_predict => 32 })->{body})->{content}, $b->{fills}[0],
        "$b->{prompt}: an editor");
}

# Of the random model: two, three, adjacent, other kinds.  The goldens bound the sum of all
# lengths: after the first fill that was cut there, the next one is the same up to its end

for my $c (grep { @{ $_->{blanks} } > 1 || $_->{name} =~ /^(mask_and|mask_first|mask_end|smask)/ }
    @{ golden('goldens/glm-mini-random/greedy.json') })
{
    my @want = map { [ map { $_->{token} } @{ $_->{steps} } ] } @{ $c->{blanks} };
    my $j = ask($m, '/v1/infill', { prompt => $c->{prompt_ids}, temperature => 0, max_tokens => scalar @{ $want[0] }, logprobs => 0 });
    my @got = @{ $j->{choices}[0]{blanks} };
    is(scalar @got, scalar @want, "$c->{name}: blanks");
    is_deeply($got[0]{token_ids}, $want[0], "$c->{name}: the first");
    near($got[0]{logprobs}{token_logprobs}, [ map { $_->{logprob} } @{ $c->{blanks}[0]{steps} } ], 1e-3, "$c->{name}: logprobs");
    next if @want < 2;
    is_deeply([ @{ $got[1]{token_ids} }[ 0 .. $#{ $want[1] } ] ], $want[1], "$c->{name}: the second goes on from it");
}

# Each sample has fills of its own, the same for the same seed

my %two = (prompt => 'The [MASK] is the name of the [MASK].', temperature => 1.2, seed => 5, n => 3, max_tokens => 8);
$j = ask($d, '/v1/infill', \%two);
my %texts = map { $_->{text} => 1 } @{ $j->{choices} };
cmp_ok(scalar keys %texts, '>', 1, 'samples differ');
is_deeply(ask($d, '/v1/infill', \%two)->{choices}, $j->{choices}, 'and come again');
is_deeply([ map { my $c = $_; map { substr $c->{text}, $_->{start}, $_->{end} - $_->{start} } @{ $c->{blanks} } } @{ $j->{choices} } ],
    [ map { map { $_->{text} } @{ $_->{blanks} } } @{ $j->{choices} } ], 'each in its place');
$j = ask($d, '/v1/infill', { %fill, prompt => '[MASK] is the file. The [MASK]', max_tokens => 1, stop => 'x' });
is_deeply([ map { $_->{finish_reason} } @{ $j->{choices}[0]{blanks} } ], [ 'length', 'length' ], 'max_tokens is per blank');

# What only the engine can say, while a stream runs beside it

my $beside = $d->beside(prompt => 'English: Where is the file? German:', temperature => 0, ignore_eos => TRUE, max_tokens => 400);
$d->wait_stat('num_requests_running', 1, 10);
my $C = '/v1/completions';
for (
    [ '/v1/infill', { prompt => 'no blank' }, 'prompt', qr/no mask/ ],
    [ '/v1/infill', { prompt => '[MASK] ' x 500 }, 'prompt', qr/500.*256/ ],
    [ '/v1/infill', { prompt => '[MASK]' . ' file' x 2000 }, 'prompt', qr/1024/ ],
    [ '/v1/infill', { prompt => '[MASK] a', parse_masks => FALSE }, 'prompt', qr/no mask/ ],
    [ '/v1/infill', { prompt => '[MASK] a', num_beams => 2, stop => 'x' }, 'stop', qr/beam/ ],
    [ $C, { prompt => '[MASK] a [MASK]' }, 'prompt', qr{2 \[MASK\].*/v1/infill} ],
    [ $C, { prompt => '[MASK] a', suffix => 'b' }, 'suffix', qr/mask/ ],
    [ $C, { prompt => [ 22, 7808 ], suffix => 'b' }, 'suffix', qr/mask/ ],
    [ $C, { prompt => 'a', num_beams => 2, stop => 'x' }, 'stop', qr/beam/ ],
    [ $C, { prompt => 'a', no_repeat_ngram_size => 2 }, 'no_repeat_ngram_size', qr/beam/ ],
    [ '/v1/score', { prompt => 'a', choices => [ 'b', 'a ' x 3000 ] }, 'choices', qr/1 has 3000.*1024/ ],
    [ '/v1/score', { prompt => 'a', choices => [ ' ' ] }, 'choices', qr/0 is empty/ ],
    [ '/v1/score', { prompt => 'a', choices => [ [ 7808 ] ] }, 'choices', qr/7808/ ],
    [ '/v1/score', { prompt => 'a [MASK]', choices => [ 'b' ], mode => 'unidirectional' }, 'prompt', qr/mask/ ],
) {
    my ($uri, $body, $param, $like) = @$_;
    check_error($d->post($uri, $body), 400, "$uri " . substr(to_json($body), 0, 70), param => $param, like => $like);
}
is(ask($d, '/v1/infill', { prompt => '[MASK]' x 40, max_tokens => 1 })->{choices}[0]{blanks}[39]{finish_reason}, 'length', '40 blanks');
is($d->post('/v1/infill', { prompt => '[MASK]a[MASK]', max_tokens => 0 })->{status}, 200, 'max_tokens 0');
my ($text, $longest) = $beside->();
is($text, $d->complete(prompt => 'English: Where is the file? German:', temperature => 0, ignore_eos => TRUE, max_tokens => 400)
    ->{choices}[0]{text}, 'the stream beside is as alone');
cmp_ok($longest // 99, '<', 10 * GLM::Test::patience(), 'and was not held up');

# A client that leaves between the blanks

my $c = $d->post('/v1/infill', { prompt => '[MASK] a ' x 30, max_tokens => 30, ignore_eos => TRUE, stream => TRUE }, start => 1);
$c->read_head;
1 until (json($c->event->{data})->{choices}[0]{blank} // 0) == 2;
$c->close;

$_->idle(20, 'nothing is left') for $d, $m;
$d->done;
