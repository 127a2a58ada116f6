"""Lists of words that several detectors go by."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that say nothing about a topic: English function words, and the verbs, nouns and adverbs of
# requests and of small talk.
GENERIC = _words("""
    a about above additional after again against all almost also although always am among an and
    another any anything are aren't as ask asked assist assistance at away be because been
    before being below best better between both but by came can can't cannot come could couldn't
    did didn't different do does doesn't doing don't done down each either else enough even ever
    every everything example feel few find first for free from further get getting give given go
    goes going good got had has hasn't have haven't having he hello help helpful helps her here
    here's hers hesitate hey hi him his hope how however i i'd i'll i'm i've if important in
    instead into is isn't it it's its itself just keep kind know last least less let let's like
    list little look lot lots made main make makes making many may maybe me mean means might
    mine more most much must my myself need needs never new next no nor not nothing now of off
    ok okay on once one ones only or other others our ours out over own part people perhaps
    please possible question questions quite rather really right said same say says see she
    should shouldn't show since so some someone something sorry still such sure take tell than
    thank thanks that that's the their theirs them then there there's these they thing things
    think this those through thus time to today together too try two under until up upon us use
    used using usually very want wants was wasn't way ways we well were weren't what what's when
    where whether which while who whom whose why will with within without won't would wouldn't
    write yes yet you you'd you'll you're you've your yours yourself
""")
# Frequent words of English that are rare in other languages.
ENGLISH = _words("""
    the and of that with you your this can but they she what how from which there their i'm it's
    don't would could should about
""")
# Words that end fewer than one in fifty of the sentences that they occur in. The English ones were
# counted in seven million words of encyclopaedia, dialogue and answers.
NEVER_LAST = _words("""
    a about according additional after although am among an and any are as at based be became
    because been being between both but by can can't cannot caused causing certain contains could
    despite don't due during each eastern entire especially even eventually every finally for former
    from generally had has have having he highest how however i'd i'll i'm i've if in include
    includes including into is it's its largest let let's likely main major many may might most must
    my near never northern of often on or originally our per previous primary provides rather
    several she should since some still such suddenly than that's the their there's these they this
    to typically under unless until upon using usually various very was we were what what's when
    where whether which while who whose will with within without would your you're
    auf avec com como con dans dass de del dem den der des dla du ein eine einem einen el und für il
    la las le les los mit oder og par para per por pour que sich sur una une von y zu zum zur
""")
# Those of them that a short phrase or a list item may end with ("log in", "as I am").
LAST_IN_SHORT_PHRASES = _words("""
    about after am are be been by can for had has have in is may might most must of on own should
    since such this to under was were what when where who will with within without would
""")
AUXILIARIES = _words("""
    am are be been can could had has have is may might should was were will
""")
