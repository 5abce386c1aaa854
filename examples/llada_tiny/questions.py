"""How people ask for the facts: for each kind and direction the answer, and questions to train on and to hold out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasing:
    """Wordings of one kind of fact in one direction; `facts.worded` fills them in.

    Attributes:
        answer: the sentence to answer with.
        expected: what an answer must hold to be right.
        trained: questions of the training data.
        held_out: questions that only the evaluation asks.
    """

    answer: str
    expected: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]


CAPITAL = Phrasing(
    "The capital of {a} is {b}.", "{b}",
    ("What is the capital of {a}?", "What's the capital of {a}?", "Which city is the capital of {a}?",
     "What is the capital city of {a}?", "Tell me the capital of {a}.", "Can you tell me the capital of {a}?",
     "Do you know the capital of {a}?", "Name the capital of {a}.", "What city is the capital of {a}?",
     "I want to know the capital of {a}."),
    ("Please give me the name of the capital of {a}.", "Which city serves as the capital of {a}?",
     "What is the name of the capital of {a}?", "Could you say what the capital of {a} is?"),
)  # fmt: skip
CAPITAL_OF = Phrasing(
    "{b} is the capital of {a}.", "{a}",
    ("{b} is the capital of which country?", "Which country has {b} as its capital?", "What is {b} the capital of?",
     "Which country's capital is {b}?", "{b} is the capital of what?", "Of which country is {b} the capital?"),
    ("What country has {b} as its capital city?", "Tell me which country {b} is the capital of.",
     "In which country is {b} the capital?"),
)  # fmt: skip
STATE_CAPITAL_OF = Phrasing(
    "{b} is the capital of {a}.", "{a}",
    ("{b} is the capital of which state?", "Which state has {b} as its capital?", "What is {b} the capital of?",
     "Which state's capital is {b}?", "{b} is the capital of what?", "Of which state is {b} the capital?"),
    ("What state has {b} as its capital city?", "Tell me which state {b} is the capital of.",
     "In which state is {b} the capital?"),
)  # fmt: skip

QUESTIONS: dict[tuple[str, str], Phrasing] = {
    ("capital", "forward"): CAPITAL,
    ("capital", "backward"): CAPITAL_OF,
    ("state capital", "forward"): CAPITAL,
    ("state capital", "backward"): STATE_CAPITAL_OF,
    ("province capital", "forward"): CAPITAL,
    ("abbreviation", "forward"): Phrasing(
        "The abbreviation for {a} is {b}.", "{b}",
        ("What is the abbreviation for {a}?", "What's the abbreviation of {a}?", "How is {a} abbreviated?",
         "Tell me the abbreviation for {a}.", "How do you abbreviate {a}?", "What is {a} abbreviated as?"),
        ("What is the short form of {a}?", "Can you give me the abbreviation for {a}?",
         "Which abbreviation does {a} have?"),
    ),
    ("abbreviation", "backward"): Phrasing(
        "{b} stands for {a}.", "{a}",
        ("What does {b} stand for?", "Which state is {b}?", "Which state is abbreviated {b}?", "What state is {b}?",
         "What is {b} short for?", "Tell me what {b} stands for."),
        ("Which state does {b} mean?", "Can you tell me what {b} stands for?", "{b} is short for which state?"),
    ),
    ("chemical symbol", "forward"): Phrasing(
        "The chemical symbol for {a} is {b}.", "{b}",
        ("What is the chemical symbol for {a}?", "What's the symbol for {a}?", "What is the symbol of {a}?",
         "Tell me the chemical symbol for {a}.", "Which symbol does {a} have?", "What is the chemical symbol of {a}?",
         "Do you know the chemical symbol for {a}?"),
        ("Which chemical symbol stands for {a}?", "Please give me the symbol for {a}.",
         "What symbol is used for {a}?"),
    ),
    ("chemical symbol", "backward"): Phrasing(
        "The element with the symbol {b} is {a}.", "{a}",
        ("Which element has the symbol {b}?", "What element is {b}?", "Which element is {b}?",
         "What element has the symbol {b}?", "{b} is the symbol of which element?",
         "Tell me which element has the symbol {b}."),
        ("{b} is the chemical symbol for which element?", "Name the element with the symbol {b}.",
         "What is the element whose symbol is {b}?"),
    ),
    ("atomic number", "forward"): Phrasing(
        "The atomic number of {a} is {b}.", "{b}",
        ("What is the atomic number of {a}?", "What's the atomic number of {a}?", "Which atomic number does {a} have?",
         "Tell me the atomic number of {a}.", "Do you know the atomic number of {a}?"),
        ("What atomic number does {a} have?", "Please give me the atomic number of {a}.",
         "Can you tell me the atomic number of {a}?"),
    ),
    ("atomic number", "backward"): Phrasing(
        "The element with atomic number {b} is {a}.", "{a}",
        ("Which element has the atomic number {b}?", "What element has atomic number {b}?",
         "What is element number {b}?", "Which element is number {b}?",
         "Tell me which element has the atomic number {b}."),
        ("Name the element with atomic number {b}.", "Which is the element with the atomic number {b}?",
         "What is the name of element number {b}?"),
    ),
    ("baby", "forward"): Phrasing(
        "A baby {a} is called {b}.", "{plain_b}",
        ("What is a baby {a} called?", "What do you call a baby {a}?", "What is the young of {an_a} called?",
         "What's a baby {a} called?", "Tell me what a baby {a} is called.", "What is the name for a baby {a}?",
         "What is the word for a baby {a}?", "Do you know what a baby {a} is called?"),
        ("How do you call the young of {an_a}?", "By which name goes a baby {a}?",
         "Can you tell me the word for a baby {a}?", "What name do people give to a baby {a}?"),
    ),
    ("baby", "backward"): Phrasing(
        "{B} is a baby {a}.", "{a}",
        ("What is {b}?", "Which animal is {b} a baby of?", "Which animal's baby is called {b}?",
         "What animal is {b}?", "{B} is the young of which animal?"),
        ("Which animal has a baby that is called {b}?", "What does {b} grow up to be?",
         "Tell me which animal {b} belongs to."),
    ),
    ("group", "forward"): Phrasing(
        "A group of {a} is called {b}.", "{plain_b}",
        ("What is a group of {a} called?", "What do you call a group of {a}?", "What's a group of {a} called?",
         "Tell me what a group of {a} is called.", "What is the word for a group of {a}?",
         "What is the name for a group of {a}?", "Do you know what a group of {a} is called?"),
        ("How do you call a number of {a} together?", "Which word is used for a group of {a}?",
         "Can you tell me the name for a group of {a}?"),
    ),
    ("group", "backward"): Phrasing(
        "{B} is a group of {a}.", "{a}",
        ("{B} is a group of what?", "What are there in {b}?", "What is {b} made of?",
         "Which group is called {b}?", "Who or what comes together in {b}?"),
        ("{B} is the word for a group of what?", "Of what is {b} a group?", "Tell me what {b} is a group of."),
    ),
    ("flower", "forward"): Phrasing(
        "In the language of flowers, {an_a} means {b}.", "{b}",
        ("What does {an_a} mean in the language of flowers?", "What does {an_a} mean?",
         "What do you say with {an_a}?", "Tell me what {an_a} means in the language of flowers.",
         "In the language of flowers, what does {an_a} mean?"),
        ("What is the meaning of {an_a} in the language of flowers?", "What does it mean to give {an_a}?",
         "Which message does {an_a} have in the language of flowers?"),
    ),
    ("opposite", "forward"): Phrasing(
        'The opposite of {a} is {b}.', "{b}",
        ("What is the opposite of {a}?", "What's the opposite of {a}?", "Tell me the opposite of {a}.",
         "Which word is the opposite of {a}?", "What is the contrary of {a}?", "Do you know the opposite of {a}?"),
        ("Give me the opposite of {a}.", "Which word means the opposite of {a}?", "Name the opposite of {a}."),
    ),
    ("opposite", "backward"): Phrasing(
        'The opposite of {b} is {a}.', "{a}",
        ("What is the opposite of {b}?", "What's the opposite of {b}?", "Tell me the opposite of {b}.",
         "Which word is the opposite of {b}?", "What is the contrary of {b}?", "Do you know the opposite of {b}?"),
        ("Give me the opposite of {b}.", "Which word means the opposite of {b}?", "Name the opposite of {b}."),
    ),
    ("female", "forward"): Phrasing(
        "The female of {an_a} is {b}.", "{plain_b}",
        ("What is the female of {an_a}?", "What is the female form of {a}?", "What is a female {a} called?",
         "What do you call a female {a}?", "Tell me the female form of {a}."),
        ("Which word is the female form of {a}?", "What is the name for a female {a}?",
         "Give me the female form of {a}."),
    ),
    ("female", "backward"): Phrasing(
        "The male of {b} is {an_a}.", "{a}",
        ("What is the male of {b}?", "What is the male form of {plain_b}?", "What is a male {plain_b} called?",
         "What do you call a male {plain_b}?", "Tell me the male form of {plain_b}."),
        ("Which word is the male form of {plain_b}?", "What is the name for a male {plain_b}?",
         "Give me the male form of {plain_b}."),
    ),
    ("year", "forward"): Phrasing(
        "The year of the {a} is followed by the year of the {b}.", "{b}",
        ("Which year comes after the year of the {a}?", "What comes after the year of the {a}?",
         "Which year follows the year of the {a}?"),
        ("Tell me what follows the year of the {a}.", "What is the next year after the year of the {a}?"),
    ),
    ("year", "backward"): Phrasing(
        "The year of the {b} comes after the year of the {a}.", "{a}",
        ("Which year comes before the year of the {b}?", "What comes before the year of the {b}?",
         "Which year precedes the year of the {b}?"),
        ("Tell me what comes before the year of the {b}.", "What is the last year before the year of the {b}?"),
    ),
    ("order", "forward"): Phrasing(
        "{a} was the {b} President of the United States.", "{b}",
        ("Which President of the United States was {a}?", "Which number did President {a} have?",
         "Which president was {a}?", "What number president was {a}?"),
        ("Tell me which number President {a} was.", "In the order of presidents, which was {a}?"),
    ),
    ("order", "backward"): Phrasing(
        "{a} was the {b} President of the United States.", "{a}",
        ("Who was the {b} President of the United States?", "Who was the {b} president?",
         "Who was the {b} US president?", "Name the {b} President of the United States.",
         "Tell me who was the {b} President of the United States.", "Who was the {b} American president?"),
        ("Which man was the {b} President of the United States?", "Do you know who the {b} president was?",
         "Give me the name of the {b} President of the United States."),
    ),
    ("term", "forward"): Phrasing(
        "{a} was President {b}.", "{b}",
        ("When was {a} President of the United States?", "When was {a} president?", "In which years was {a} president?",
         "Tell me when {a} was President of the United States.", "From when to when was {a} president?"),
        ("During which years was {a} President?", "Do you know when {a} was president?",
         "What were the years of President {a}?"),
    ),
    ("term", "backward"): Phrasing(
        "{a} was President {b}.", "{a}",
        ("Who was President of the United States {b}?", "Who was president {b}?", "Who was the US president {b}?",
         "Tell me who was president {b}.", "Name the President of the United States {b}."),
        ("Which man was President of the United States {b}?", "Do you know who was president {b}?",
         "Who was the American president {b}?"),
    ),
    ("successor", "forward"): Phrasing(
        "{b} came after {a}.", "{b}",
        ("Who came after {a}?", "Who followed {a}?", "Who was next after {a}?", "Tell me who came after {a}."),
        ("Who was the successor of {a}?", "{a} was followed by whom?", "Do you know who came after {a}?"),
    ),
    ("successor", "backward"): Phrasing(
        "{a} came before {b}.", "{a}",
        ("Who came before {b}?", "Who was there before {b}?", "Who was the last before {b}?",
         "Tell me who came before {b}."),
        ("Whom did {b} follow?", "Who preceded {b}?", "Do you know who came before {b}?"),
    ),
    ("record", "forward"): Phrasing(
        "{A} is {b}.", "{b}",
        ("What is {a}?", "What's {a}?", "Tell me, what is {a}?", "Name {a}.", "Can you tell me what {a} is?",
         "Do you know what {a} is?", "What is the name of {a}?", "What do you call {a}?", "Which is {a}?",
         "I want to know what {a} is."),
        ("Please give me the name of {a}.", "Could you say what {a} is?", "I would like to know {a}.",
         "What is {a} called?"),
    ),
    ("record", "backward"): Phrasing(
        "{B} is {a}.", "{a}",
        ("What is {b}?", "What do you know about {b}?", "Tell me about {b}.", "What can you say about {b}?",
         "What is {b} known for?"),
        ("Please tell me something about {b}.", "What makes {b} special?", "Why is {b} famous?"),
    ),
    ("deed", "forward"): Phrasing(
        "{b} {a}.", "{b}",
        ("Who {a}?", "Tell me who {a}.", "Do you know who {a}?", "Can you tell me who {a}?", "Who was it that {a}?",
         "Which person {a}?", "I want to know who {a}."),
        ("What is the name of the person who {a}?", "Could you say who {a}?", "Which man or woman {a}?"),
    ),
    ("deed", "backward"): Phrasing(
        "{b} {a}.", "{a}",
        ("Who was {b}?", "What did {b} do?", "What is {b} known for?", "Tell me about {b}.",
         "What do you know about {b}?", "Why is {b} famous?"),
        ("Please tell me something about {b}.", "Do you know who {b} was?", "What made {b} famous?"),
    ),
    ("count", "forward"): Phrasing(
        "{b}.", "{b}",
        ("How many {a}?", "Tell me, how many {a}?", "Do you know how many {a}?", "Can you say how many {a}?",
         "Just how many {a}?", "Exactly how many {a}?"),
        ("I would like to know how many {a}.", "Please say how many {a}."),
    ),
}  # fmt: skip
