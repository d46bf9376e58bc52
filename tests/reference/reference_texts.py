"""The texts the reference is computed on: prompts, tokenizer cases and conversations.

Kept apart from `make_reference.py` so that the script can be read at a sitting. All English prose
is in the public domain (typed from memory, so it may differ from the printed originals in places,
which does not matter here: the JSON holds the exact text that was used).
"""

SHORT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"

LINCOLN = """Four score and seven years ago our fathers brought forth on this continent, a new nation, \
conceived in Liberty, and dedicated to the proposition that all men are created equal. Now we are \
engaged in a great civil war, testing whether that nation, or any nation so conceived and so \
dedicated, can long endure. We are met on a great battle-field of that war."""

AUSTEN = """It is a truth universally acknowledged, that a single man in possession of a good fortune, \
must be in want of a wife.

However little known the feelings or views of such a man may be on his first entering a \
neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is \
considered as the rightful property of some one or other of their daughters.

"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at \
last?"

Mr. Bennet replied that he had not.

"But it is," returned she; "for Mrs. Long has just been here, and she told me all about it."

Mr. Bennet made no answer."""

DARWIN = """When on board H.M.S. 'Beagle,' as naturalist, I was much struck with certain facts in the \
distribution of the inhabitants of South America, and in the geological relations of the present to \
the past inhabitants of that continent. These facts seemed to me to throw some light on the origin of \
species--that mystery of mysteries, as it has been called by one of our greatest philosophers. On my \
return home, it occurred to me, in 1837, that something might perhaps be made out on this question by \
patiently accumulating and reflecting on all sorts of facts which could possibly have any bearing on \
it. After five years' work I allowed myself to speculate on the subject, and drew up some short notes; \
these I enlarged in 1844 into a sketch of the conclusions, which then seemed to me probable: from that \
period to the present day I have steadily pursued the same object. I hope that I may be excused for \
entering on these personal details, as I give them to show that I have not been hasty in coming to a \
decision.

My work is now nearly finished; but as it will take me two or three more years to complete it, and as \
my health is far from strong, I have been urged to publish this Abstract. I have more especially been \
induced to do this, as Mr. Wallace, who is now studying the natural history of the Malay archipelago, \
has arrived at almost exactly the same general conclusions that I have on the origin of species. Last \
year he sent to me a memoir on this subject, with a request that I would forward it to Sir Charles \
Lyell, who sent it to the Linnean Society, and it is published in the third volume of the Journal of \
that Society."""

CONSTITUTION = """We the People of the United States, in Order to form a more perfect Union, establish \
Justice, insure domestic Tranquility, provide for the common defence, promote the general Welfare, and \
secure the Blessings of Liberty to ourselves and our Posterity, do ordain and establish this \
Constitution for the United States of America.

Article I

Section 1. All legislative Powers herein granted shall be vested in a Congress of the United States, \
which shall consist of a Senate and House of Representatives.

Section 2. The House of Representatives shall be composed of Members chosen every second Year by the \
People of the several States, and the Electors in each State shall have the Qualifications requisite \
for Electors of the most numerous Branch of the State Legislature.

No Person shall be a Representative who shall not have attained to the Age of twenty five Years, and \
been seven Years a Citizen of the United States, and who shall not, when elected, be an Inhabitant of \
that State in which he shall be chosen.

Representatives and direct Taxes shall be apportioned among the several States which may be included \
within this Union, according to their respective Numbers. The actual Enumeration shall be made within \
three Years after the first Meeting of the Congress of the United States, and within every subsequent \
Term of ten Years, in such Manner as they shall by Law direct. The Number of Representatives shall not \
exceed one for every thirty Thousand, but each State shall have at Least one Representative.

When vacancies happen in the Representation from any State, the Executive Authority thereof shall \
issue Writs of Election to fill such Vacancies.

The House of Representatives shall chuse their Speaker and other Officers; and shall have the sole \
Power of Impeachment.

Section 3. The Senate of the United States shall be composed of two Senators from each State, chosen \
by the Legislature thereof, for six Years; and each Senator shall have one Vote.

Immediately after they shall be assembled in Consequence of the first Election, they shall be divided \
as equally as may be into three Classes. The Seats of the Senators of the first Class shall be vacated \
at the Expiration of the second Year, of the second Class at the Expiration of the fourth Year, and of \
the third Class at the Expiration of the sixth Year, so that one third may be chosen every second Year.

No Person shall be a Senator who shall not have attained to the Age of thirty Years, and been nine \
Years a Citizen of the United States, and who shall not, when elected, be an Inhabitant of that State \
for which he shall be chosen.

The Vice President of the United States shall be President of the Senate, but shall have no Vote, \
unless they be equally divided. The Senate shall chuse their other Officers, and also a President pro \
tempore, in the Absence of the Vice President, or when he shall exercise the Office of President of \
the United States."""

DECLARATION = """When in the Course of human events, it becomes necessary for one people to dissolve the \
political bands which have connected them with another, and to assume among the powers of the earth, \
the separate and equal station to which the Laws of Nature and of Nature's God entitle them, a decent \
respect to the opinions of mankind requires that they should declare the causes which impel them to \
the separation.

We hold these truths to be self-evident, that all men are created equal, that they are endowed by \
their Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit of \
Happiness.--That to secure these rights, Governments are instituted among Men, deriving their just \
powers from the consent of the governed, --That whenever any Form of Government becomes destructive of \
these ends, it is the Right of the People to alter or to abolish it, and to institute new Government, \
laying its foundation on such principles and organizing its powers in such form, as to them shall seem \
most likely to effect their Safety and Happiness. Prudence, indeed, will dictate that Governments long \
established should not be changed for light and transient causes; and accordingly all experience hath \
shewn, that mankind are more disposed to suffer, while evils are sufferable, than to right themselves \
by abolishing the forms to which they are accustomed. But when a long train of abuses and usurpations, \
pursuing invariably the same Object evinces a design to reduce them under absolute Despotism, it is \
their right, it is their duty, to throw off such Government, and to provide new Guards for their \
future security.--Such has been the patient sufferance of these Colonies; and such is now the \
necessity which constrains them to alter their former Systems of Government. The history of the \
present King of Great Britain is a history of repeated injuries and usurpations, all having in direct \
object the establishment of an absolute Tyranny over these States. To prove this, let Facts be \
submitted to a candid world.

He has refused his Assent to Laws, the most wholesome and necessary for the public good.
He has forbidden his Governors to pass Laws of immediate and pressing importance, unless suspended in \
their operation till his Assent should be obtained; and when so suspended, he has utterly neglected to \
attend to them.
He has refused to pass other Laws for the accommodation of large districts of people, unless those \
people would relinquish the right of Representation in the Legislature, a right inestimable to them \
and formidable to tyrants only.
He has called together legislative bodies at places unusual, uncomfortable, and distant from the \
depository of their public Records, for the sole purpose of fatiguing them into compliance with his \
measures.
He has dissolved Representative Houses repeatedly, for opposing with manly firmness his invasions on \
the rights of the people.
He has refused for a long time, after such dissolutions, to cause others to be elected; whereby the \
Legislative powers, incapable of Annihilation, have returned to the People at large for their \
exercise; the State remaining in the mean time exposed to all the dangers of invasion from without, \
and convulsions within.
He has endeavoured to prevent the population of these States; for that purpose obstructing the Laws \
for Naturalization of Foreigners; refusing to pass others to encourage their migrations hither, and \
raising the conditions of new Appropriations of Lands.
He has obstructed the Administration of Justice, by refusing his Assent to Laws for establishing \
Judiciary powers.
He has made Judges dependent on his Will alone, for the tenure of their offices, and the amount and \
payment of their salaries.
He has erected a multitude of New Offices, and sent hither swarms of Officers to harrass our people, \
and eat out their substance.
He has kept among us, in times of peace, Standing Armies without the Consent of our legislatures.
He has affected to render the Military independent of and superior to the Civil power.
He has combined with others to subject us to a jurisdiction foreign to our constitution, and \
unacknowledged by our laws; giving his Assent to their Acts of pretended Legislation:
For Quartering large bodies of armed troops among us:
For protecting them, by a mock Trial, from punishment for any Murders which they should commit on the \
Inhabitants of these States:
For cutting off our Trade with all parts of the world:
For imposing Taxes on us without our Consent:
For depriving us in many cases, of the benefits of Trial by Jury:
For transporting us beyond Seas to be tried for pretended offences
For abolishing the free System of English Laws in a neighbouring Province, establishing therein an \
Arbitrary government, and enlarging its Boundaries so as to render it at once an example and fit \
instrument for introducing the same absolute rule into these Colonies:
For taking away our Charters, abolishing our most valuable Laws, and altering fundamentally the Forms \
of our Governments:
For suspending our own Legislatures, and declaring themselves invested with power to legislate for us \
in all cases whatsoever."""

CODE = '''import heapq


def shortest_paths(graph, source):
    """Return the length of the shortest path from `source` to every reachable node."""
    distance = {source: 0}
    queue = [(0, source)]
    while queue:
        length, node = heapq.heappop(queue)
        if length > distance[node]:
            continue
        for neighbour, weight in graph[node].items():
            candidate = length + weight
            if neighbour not in distance or candidate < distance[neighbour]:
                distance[neighbour] = candidate
                heapq.heappush(queue, (candidate, neighbour))
    return distance


assert shortest_paths({"a": {"b": 17}, "b": {}}, "a") == {"a": 0, "b": 17}


def fibonacci(n):
'''

# (name, text, at most this many tokens: the text is cut at the last word that fits)
PROMPTS = [
    ("short", SHORT, 24),
    ("lincoln", LINCOLN, 60),
    ("austen", AUSTEN, 128),
    ("darwin", DARWIN, 300),
    ("constitution", CONSTITUTION, 600),
    ("declaration", DECLARATION, 1000),
    ("code", CODE, 300),
]

# The last prompt, rendered with the model's own chat template.
CHAT_PROMPT = (
    "chat",
    [{"role": "user", "content": "Explain in three sentences why the sky is blue."}],
)

CONVERSATIONS = [
    ("single user", [{"role": "user", "content": "What is the capital of France?"}]),
    (
        "system and user",
        [
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": "What is the capital of Italy?"},
        ],
    ),
    (
        "several turns",
        [
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hello! How can I help you today?"},
            {"role": "user", "content": "Count from 1 to 12."},
            {"role": "assistant", "content": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"},
            {"role": "user", "content": "Now backwards."},
        ],
    ),
    (
        "odd whitespace and unicode",
        [
            {
                "role": "user",
                "content": "  leading, trailing \n\n\ttab\r\nna\u00efve \u65e5\u672c\u8a9e "
                "\U0001f469\u200d\U0001f680 {{ braces }} {% if %} <b>&amp;</b> 'quotes\"  \n",
            }
        ],
    ),
]

TOKENIZER_TEXTS = [
    "",
    " ",
    "  ",
    "Hello",
    " Hello",
    "  Hello",
    "   Hello  world   ",
    "Hello world",
    "Hello, world!",
    "trailing space ",
    "trailing spaces   ",
    "a b  c   d    e     f",
    "\n",
    "\n\n",
    "\n\n\n",
    "line one\nline two",
    "line one\n\nline two\n",
    "line one \n  line two  \n\n   line three",
    "windows\r\nline ends\r\n\r\nhere\r\n",
    "\r",
    "\t",
    "\tone\t\ttwo\t \tthree",
    " \t \n \t",
    "0",
    "7 ",
    " 7",
    "1234567",
    "1,234,567.89",
    "in 1837 and 1844",
    "in  1837",
    "\n2024\n",
    "abc123def456",
    "v1.0.3-rc2+build.17",
    "3rd 4x4 H2O 0xDEADBEEF 1e-05",
    "x\u00b2 + y\u00b3 = \u00bd \u2167 \u0663\u0664\u0665 \u2460 \u09e7\u09e8",
    "I'm you're he's we'll they've I'd don't",
    "I'M YOU'RE HE'S WE'LL THEY'VE I'D DON'T",
    "'tis the dogs' 'quoted' text's''s",
    "it\u2019s \u201ccurly\u201d \u2014 dash\u2026",
    "\U0001f600",
    "hi \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family \U0001f469\U0001f3fd\u200d\U0001f680",
    "\U0001f1eb\U0001f1f7\U0001f1ee\U0001f1f9 flags \u2764\ufe0f",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\u6211\u4eec\u53bb\u516c\u56ed\u5427\uff01",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068\u3000\u5168\u89d2\u7a7a\u767d",
    "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u05e9\u05dc\u05d5\u05dd \u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 \u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
    "cafe\u0301 nai\u0308ve Z\u0351\u036b\u0343a\u0321\u034a",
    "a\u00a0b \u00a0c\u00a0 d\u00a0\u00a0",
    "thin\u2009space em\u2003space zero\u200bwidth \ufeffbom \u0085nel\u2028ls",
    "nul\x00bell\x07esc\x1b[0m",
    "\ue000private \U0010ffff \ufffd",
    "def f(x):\n    if x > 0:\n        return x ** 2\n\n    return -x\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![0; 16];\n\tprintln!(\"{:?}\", &v[..4]);\n}\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b <|im_end|> c",
    "<|endoftext|><|endoftext|> <repo_name>x<file_sep>y<empty_output>",
    "<|im_start |> <|IM_END|> <im_end> <|im_end",
    "https://example.org/a_b-c?d=1&e=%20#frag user@example.org",
    "!!! ??? ... --- === *** ### @@@ $$$ ~~~ ``` \\\\\\",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
    "a" * 300,
    "=" * 120 + "\n" + " " * 70 + "x",
    # The vocabulary has no token for 21 byte values (0x04, 0x06, 0x13, 0x14, 0x16, 0x1d among them). They
    # are dropped; `tokenizers` then merges what became neighbours, llama.cpp does not.
    "a\x04b",
    "th\x04e",
    " \x04 ",
    "!\x04!",
    "..\x06.",
    "=\x13= ==",
    "-\x1d-",
    "?\x16?\x16?",
    "\U00050000\U000c0000!",
    "MixedCaseIdentifier snake_case_name SCREAMING_CASE kebab-case-name",
]
