# The model's own arithmetic, changed somewhere between the HTTP byte and the HTTP
# byte: every golden of the demo model, through the API.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use GLM::HTTP2;

my $g = json(GLM::Test->read_file("$FindBin::Bin/data/demo/goldens.json"));
my $t = GLM::Test->new(servers => '')->engine('--max-num-seqs', 16);
$t->{h2} = GLM::Test::port();
$t->conf(server => "listen 127.0.0.1:$t->{h2} http2;")->run->ready;

# completion_tokens counts the end token, token_ids omits it
sub check {
    my ($j, $case, $name) = @_;
    my @ids = @{ $case->{token_ids} };
    my $count = @ids;
    pop @ids if $case->{finish} eq 'stop';
    my $c = $j->{choices}[0];
    is($c->{text}, $case->{text}, "$name: text");
    is_deeply($c->{token_ids}, \@ids, "$name: ids");
    is($c->{finish_reason}, $case->{finish}, "$name: finish_reason");
    is_deeply($c->{prompt_token_ids}, $case->{prompt_ids}, "$name: the prompt's ids");
    is($j->{usage}{completion_tokens}, $count, "$name: completion_tokens");
    is($j->{usage}{prompt_tokens}, scalar @{ $case->{prompt_ids} }, "$name: prompt_tokens");
}

my @cases = @{ $g->{cases} };
cmp_ok(scalar @cases, '>=', 15, 'cases');
my %ask = (temperature => 0, max_tokens => 48, return_token_ids => TRUE);
for my $i (0 .. $#cases) {
    check($t->complete(%ask, prompt => $cases[$i]{prompt}), $cases[$i], "case $i");
}

# The ids of a prompt are the prompt

for my $i (0 .. $#cases) {
    my @ids = @{ $cases[$i]{prompt_ids} };
    pop @ids if $i % 2;                           # the mask is added
    check($t->complete(%ask, prompt => \@ids), $cases[$i], "case $i by ids");
}

# Past the end token

for my $i (0 .. $#cases) {
    next if $cases[$i]{ignore_eos_min_margin} < 0.02;
    my $j = $t->complete(%ask, prompt => $cases[$i]{prompt}, ignore_eos => TRUE);
    is_deeply($j->{choices}[0]{token_ids}, $cases[$i]{ignore_eos_ids}, "case $i with ignore_eos");
}

# All at once, streamed, half of them over HTTP/2

my $h2 = GLM::HTTP2->new(port => $t->{h2});
my (@client, @stream);
for my $i (0 .. $#cases) {
    my %body = (%ask, prompt => $cases[$i]{prompt}, stream => TRUE, stream_options => { include_usage => TRUE });
    $client[$i] = $t->post('/v1/completions', \%body, start => 1) if $i % 2 == 0;
    $stream[$i] = $h2->request('POST', '/v1/completions', body => to_json(\%body)) if $i % 2;
}
for my $i (0 .. $#cases) {
    my @c;
    if ($client[$i]) {
        $client[$i]->read_head;
        @c = data_events($client[$i]->events);
    } else {
        @c = data_events($h2->events($stream[$i]));
    }
    my $usage = pop @c;
    my %whole = (finish_reason => $c[-1]{choices}[0]{finish_reason}, text => '', token_ids => [],
        prompt_token_ids => $c[0]{choices}[0]{prompt_token_ids});
    for (map { $_->{choices}[0] } @c) {
        $whole{text} .= $_->{text};
        push @{ $whole{token_ids} }, @{ $_->{token_ids} // [] };
    }
    check({ choices => [ \%whole ], usage => $usage->{usage} }, $cases[$i], "case $i, batched stream");
}

# Blanks: those with one mask

my $n = 0;
for my $b (@{ $g->{blanks} }) {
    next if @{ $b->{fills} } != 1;
    my @ids = @{ $b->{fill_ids}[0] };
    my $j = $t->complete(%ask, max_tokens => 32, prompt => $b->{prompt});
    is($j->{choices}[0]{text}, $b->{fills}[0], "blank $n: text");
    is_deeply($j->{choices}[0]{token_ids}, [ @ids[ 0 .. $#ids - 1 ] ], "blank $n: ids");
    is_deeply($j->{choices}[0]{prompt_token_ids}, $b->{prompt_ids}, "blank $n: the prompt's ids");
    is($j->{usage}{completion_tokens}, scalar @ids, "blank $n: completion_tokens");
    $n++;
}
cmp_ok($n, '>=', 8, 'blanks');

# Tokens are what they were

for my $i (0 .. $#cases) {
    my $r = $t->post('/tokenize', { prompt => $cases[$i]{prompt} });
    is_deeply(json($r->{body})->{tokens}, $cases[$i]{prompt_ids}, "case $i: /tokenize");
}

# Scores: the golden choices' log-probabilities, read off greedy runs

for my $s (@{ $g->{score} }) {
    my ($best) = $s->{choices}[ $s->{best} ];
    my $c = $t->complete(%ask, prompt => $s->{prompt}, logprobs => 0, max_tokens => scalar @{ $best->{ids} })
        ->{choices}[0];
    next if "@{ $c->{token_ids} }" ne "@{ $best->{ids} }";
    my @off = grep { abs($c->{logprobs}{token_logprobs}[$_] - $best->{logprobs}[$_]) > 1e-3 }
        0 .. $#{ $best->{logprobs} };
    is_deeply(\@off, [], "log-probabilities of " . substr $s->{prompt}, 0, 30);
    $n = 100;
}
is($n, 100, 'at least one scored choice is greedy');

$t->idle(5, 'nothing is left');
$t->done;
