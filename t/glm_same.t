# A stream whose text, ids, log-probabilities, ends or usage differ from the plain
# answer's in a combination or a timing that nobody thought of: requests made up at
# random, with messages that come one by one, in heaps, or to a worker that stands
# still now and then.  GLM_SEED=N begins elsewhere, GLM_LONG=1 makes twenty times as many.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use Time::HiRes qw(sleep time);

my $SEED = $ENV{GLM_SEED} // 1;
my $MANY = $ENV{GLM_LONG} ? 20 : $ENV{GLM_SANITIZED} ? 0.25 : 1;
my ($C, $H, $I, $E, $S) = qw(/v1/completions /v1/chat/completions /v1/infill /infill /v1/score);

my ($t, $real);      # what answers, and is it the model

# A worker that stands still at times finds much in the ring at once.
sub jerk {
    my ($worker) = $t->workers;
    my $main = $$;
    my $pid = fork // die "fork: $!\n";
    return ($pid, $worker) if $pid;
    srand $SEED;
    while (getppid == $main) {
        kill STOP => $worker;
        sleep rand 0.008;
        kill CONT => $worker;
        sleep rand 0.006;
    }
    POSIX::_exit(0);
}

my %asked;      # path, error or whole: number

# ---- requests ----

sub one { return $_[rand @_] }
sub maybe { my ($p, @v) = @_; return rand() < $p ? @v : () }

# What the engine does: the text, how it comes, and its end
sub script {
    my ($stops) = @_;
    return one('English: Where is the file? German:', 'Return True if', "\x{4f60}\x{597d} ", "\x{1f600}\n") if $real;
    my @w = ('tokens=' . one(0 .. 4, 7, 20, 60), 'delay=' . one(0, 0, 0, 1, 2), 'burst=' . one(1, 1, 2, 5, 100));
    push @w, maybe(0.3, 'first=' . one(1, 3)), maybe(0.3, 'accept=' . one(1, 3)), maybe(0.2, 'cached=3');
    push @w, one('', '', 'bytes=' . one(1, 9, 700), 'utf8', 'text=x_y', 'bychoice'), maybe(0.1, 'held');
    push @w, maybe(0.2, 'reason=' . one(qw(stop length))), maybe(0.1, 'stopid=77'), maybe($stops ? 0.1 : 0, 'stopindex=1');
    push @w, maybe(0.08, 'errorat=' . one(1 .. 3) . ' error=500');
    return join ' ', 'fake:', grep { length } @w;
}

sub prompt {
    my ($uri, $stops) = @_;
    return script($stops) if $uri ne $I;
    return join(' ', (map { one("\x{4f60} ", 'a ', '') . '[MASK]' } 1 .. one(1, 1, 2, 3)), script($stops));
}

sub body {
    my ($uri) = @_;
    my %b = (max_tokens => one(0, 3, 64, 64, 64), stop => [ 'nix', 'nox' ]);
    $b{max_tokens} = one(0, 3, 20, 40) if $real;
    %b = (%b, stop => [ one('e', ' die', 'st di', "\n", ' ') ], seed => int rand 1000, temperature => one(0, 0.7, 1.9),
        maybe(0.3, ignore_eos => TRUE)) if $real;
    if ($uri eq $E) {
        $b{n_predict} = delete $b{max_tokens};
        return (input_prefix => script(1), input_suffix => one('', 'b'), %b);
    }
    $b{n} = one(1, 1, 2, 4);
    if (rand() < 0.25) {
        $b{num_beams} = $b{n} + one(0, 1, 2);
        delete @b{qw(stop seed temperature)} if $b{num_beams} > 1;
    }
    %b = (%b, maybe(0.2, include_stop_str_in_output => TRUE), maybe(0.4, return_token_ids => TRUE), maybe(0.2, return_tokens_as_token_ids => TRUE),
        maybe(0.3, stream_interval => one(1, 2, 3, 50)));
    if ($uri eq $H) {
        $b{messages} = [ { role => 'user', content => script($b{stop}) } ];
        return (%b, maybe(0.4, logprobs => TRUE, top_logprobs => one(0, 2)));
    }
    $b{prompt} = prompt($uri, $b{stop});
    $b{logprobs} = one(0, 1, 5) if rand() < 0.4;
    return %b if $uri eq $I;
    $b{prompt} = [ map { script($b{stop}) } 1 .. one(2, 3) ] if rand() < 0.2;
    return (%b, rand() < 0.3 ? (echo => TRUE) : rand() < 0.2 ? (suffix => 'b') : ());
}

# ---- the same shape of both ----

# Log-probabilities are lists in an object, or nothing; none at all is nothing, too.
sub add_logprobs {
    my ($to, $l) = @_;
    for my $k (keys %{ $l // {} }) {
        push @{ $$to->{$k} }, @{ $l->{$k} // [] } if @{ $l->{$k} // [] };
    }
}

# Adds a chunk, or a whole choice, to what came of that choice.
sub add {
    my ($to, $c) = @_;
    my $d = $c->{delta} // $c->{message} // {};
    die "something after its end\n" if defined $to->{finish_reason};
    $to->{text} .= $c->{text} // $d->{content} // '';
    $to->{role}++ if $d->{role};
    die "no role first\n" if ($c->{delta} || $c->{message}) && !$to->{role};
    add_logprobs(\$to->{logprobs}, $c->{logprobs});
    for my $k (qw(token_ids prompt_token_ids)) {
        push @{ $to->{$k} }, @{ $c->{$k} } if $c->{$k};
    }
    for my $k (qw(finish_reason stop_reason score)) {
        $to->{$k} = $c->{$k} if defined $c->{$k};
    }
    return $to;
}

# Of blanks the stream tells text and tokens by pieces, places and the whole at the end.
sub add_blanks {
    my ($to, $c) = @_;
    die "something after the whole\n" if exists $to->{text};
    if (defined $c->{blank}) {
        add($to->{blanks}[ $c->{blank} ] //= {}, $c);
        return;
    }
    $to->{text} = $c->{text};
    $to->{score} = $c->{score} if defined $c->{score};
    for my $b (@{ $c->{blanks} }) {
        my $of = $to->{blanks}[ $b->{index} ] //= {};
        add($of, $b) if exists $b->{text};
        @$of{qw(start end)} = @$b{qw(start end)};
    }
}

# { index => choice } of any number of answers or chunks
sub choices {
    my ($uri, @answers) = @_;
    my %by;
    for my $c (map { @{ $_->{choices} } } @answers) {
        $uri eq $I ? add_blanks($by{ $c->{index} } //= {}, $c) : add($by{ $c->{index} } //= {}, $c);
    }
    return \%by;
}

# What a plain answer always has and a stream has not, or other than per choice
sub alike {
    my ($uri, $body, $by) = @_;
    for my $c (values %$by) {
        next if $uri ne $I;
        $body->{return_token_ids} or delete $_->{token_ids} for @{ $c->{blanks} };
        next if ($body->{num_beams} // 0) < 2;
        # the candidates of a search share the blanks before the last one
        $c->{blanks} = [ $c->{blanks}[-1] ];
    }
    return $by;
}

# ---- a stream ----

sub stream {
    my ($uri, $body) = @_;
    my $c = $t->post($uri, { %$body, stream => TRUE }, start => 1, maybe(0.2, rcvbuf => 4096));
    my $r = $c->read_head or die "no answer\n";
    if ($r->{status} != 200) {
        $c->read_some while !$c->{done} && !$c->{eof};
        return ($r->{status}, json($r->{body}));
    }
    my @e = $c->events;
    die "the connection ended in the middle\n" if !$c->{done};
    return (200, map { json($_->{data}) } @e) if $uri =~ m{^(?:/small)?/infill$};
    return (200, data_events(@e));
}

# Usage of each chunk as asked; that of the end
sub usage_of {
    my ($body, $chunks) = @_;
    my $o = $body->{stream_options} // {};
    my $last = $o->{include_usage} && !$chunks->[-1]{error} ? pop @$chunks : {};
    my %told;
    for my $c (grep { !$_->{error} } @$chunks) {
        die "usage unasked\n" if !$o->{include_usage} && exists $c->{usage};
        die "no usage\n" if $o->{include_usage} && !exists $c->{usage};
        next if !$o->{continuous_usage_stats} || !$o->{include_usage};
        my ($i, $n) = ($c->{choices}[0]{index}, $c->{usage}{completion_tokens});
        die "usage goes back\n" if $n < ($told{$i} // 0);
        $told{$i} = $n;
    }
    return ($last->{usage}, \%told);
}

# '' or both
sub differ {
    my ($got, $want) = map { to_json($_) } @_;
    return $got eq $want ? '' : "streamed $got\nplain    $want\n";
}

sub editor_same {
    my ($plain, @events) = @_;
    my $last = pop @events;
    my %got = (%$last, content => join '', map { $_->{content} } @events, $last);
    delete $_->{timings} for \%got, $plain;
    return differ(\%got, $plain);
}

# An error comes as a status or, later, as the last event.
sub failed {
    my ($plain, @chunks) = @_;
    return "plain has no error\n" if !$plain->{error};
    return differ($chunks[-1]{error}, $plain->{error});
}

# '' or what differs
sub compare {
    my ($where, $uri, $body) = @_;
    my $plain = json($t->post("$where$uri", $body)->{body});
    $asked{$uri}{ $plain->{error} ? $plain->{error}{message} : 'whole' }++;
    my %streamed = (%$body, maybe(0.5, stream_options => { include_usage => one(TRUE, FALSE), continuous_usage_stats => one(TRUE, FALSE) }));
    delete $streamed{stream_options} if $uri eq $E;
    my ($status, @chunks) = stream("$where$uri", \%streamed);
    return failed($plain, @chunks) if $plain->{error} || $status != 200 || grep { $_->{error} } @chunks;
    return editor_same($plain, @chunks) if $uri eq $E;
    my ($usage, $told) = usage_of(\%streamed, \@chunks);
    my $bad = differ(map { alike($uri, $body, $_) } choices($uri, @chunks), choices($uri, $plain));
    $bad .= differ($usage, $plain->{usage}) if $usage;
    my $sum = 0;
    $sum += $_ for values %$told;
    $bad .= "usage of all chunks: $sum, not $usage->{completion_tokens}\n"
        if %$told && $sum != $usage->{completion_tokens};
    return $bad;
}

# ---- scores: no stream, but many messages; the sums are known ----

sub sum {
    my ($bytes) = @_;
    my $s = 0;
    $s -= (ord($_) % 8 + 1) / 8 for split //, $bytes;
    return $s;
}

sub compare_scores {
    my $n = one(1, 3, 40, 300);
    my @choices = map { join '', map { one('a' .. 'z', ' ') } 1 .. one(1, 5, 40) } 1 .. $n;
    my $all = one(FALSE, TRUE);
    my $j = json($t->post($S, { prompt => 'p', choices => \@choices, unconditional => $all, normalize => one('none', 'token') })->{body});
    my $best = 0;
    for my $i (0 .. $#choices) {
        my $c = $j->{choices}[$i] or return to_json($j);
        return "choice $i: " . to_json($c) if abs($c->{logprob} - sum($choices[$i])) > 1e-6 || @{ $c->{token_ids} } != length $choices[$i]
            || $c->{text} ne $choices[$i];
        $best = $i if $c->{score} > $j->{choices}[$best]{score};
    }
    return $best == $j->{best} ? '' : "best is $best, not $j->{best}";
}

# ---- clients that leave at any time ----

sub leave {
    my ($uri, $body) = @_;
    my $c = $t->post($uri, { %$body, $uri =~ /score/ ? (prompt => 'p', choices => [ 'a' x 500 ]) : (stream => one(TRUE, FALSE)) },
        start => 1);
    $c->fill(time + rand 0.02) for 1 .. one(0, 1, 2);
    rand() < 0.5 ? $c->close : $c->reset;
}

# ---- all of them ----

sub run_cases {
    my ($cases, $name, @uris) = @_;
    my $bad = 0;
    %asked = ();
    my ($jerk, $worker) = jerk();
    for my $i ($SEED .. $SEED + $cases * $MANY - 1) {
        srand $i;
        my ($uri, $where) = (one(@uris), one('', '/small'));
        my %body = $uri eq $S ? () : body($uri);
        leave("$where$uri", \%body) if rand() < 0.2;
        my $diff = eval { $uri eq $S ? compare_scores() : compare($where, $uri, \%body) } // $@;
        next if $diff eq '';
        diag("GLM_SEED=$i $where$uri ", to_json(\%body), "\n", substr $diff, 0, 3000);
        last if ++$bad >= 5;
    }
    is($bad, 0, "$name: streamed as plain");
    kill KILL => $jerk;
    waitpid $jerk, 0;
    kill CONT => $worker;
    $t->idle(30, "$name: nothing is left");
}

my $locations = <<'END';
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /small/ { glm_pass unix:%%SOCKET%%; glm_buffer_size 1k; }
END

$t = GLM::Test->new(log_level => 'crit')->fake('--max-seq', 9000)->conf(locations => $locations)->run->ready;
run_cases(400, 'a scripted engine', $C, $C, $H, $H, $I, $I, $E, $S);
is_deeply([ sort map { keys %$_ } values %asked ], [ ('fake error') x 4, ('whole') x 4 ],
    'whole answers and errors that the script wants') || diag(to_json(\%asked));
$t->finish;

$real = 1;
$t = GLM::Test->new(log_level => 'crit')->engine->conf(locations => $locations)->run->ready;
run_cases(200, 'the demo model', $C, $C, $H, $I, $I, $E);
is(scalar(grep { $_->{whole} } values %asked), 4, 'whole answers of all') || diag(to_json(\%asked));
$t->done;
