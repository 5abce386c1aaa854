"""Facts about the world that WordNet's definitions state, picked by hand, each with the words that state it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from facts import Fact


@dataclass(frozen=True)
class Record:
    """A fact and where it stands.

    Attributes:
        a: what the question asks for: a description for `RECORDS`, a deed for `DEEDS`, a number for `COUNTS`.
        b: the answer; for `COUNTS` a whole sentence.
        lemma: an entry of WordNet, as its data file spells it.
        evidence: words of that entry's definition.
    """

    a: str
    b: str
    lemma: str
    evidence: str


RECORDS = tuple(Record(*row.split(" | ")) for row in """
the largest planet in the solar system | Jupiter | Jupiter | the largest planet and the 5th from the sun
the smallest planet in the solar system | Mercury | Mercury | the smallest planet and the nearest to the sun
the planet nearest to the sun | Mercury | Mercury | the nearest to the sun
the second planet from the sun | Venus | Venus | the second nearest planet to the sun
the third planet from the sun | Earth | Earth | the 3rd planet from the sun
the planet we live on | Earth | Earth | the planet we live on
the fourth planet from the sun | Mars | Mars | the 4th from the sun
the Red Planet | Mars | Red_Planet | a small reddish planet
the fifth planet from the sun | Jupiter | Jupiter | the 5th from the sun
the sixth planet from the sun | Saturn | Saturn | the 6th planet from the sun
the seventh planet from the sun | Uranus | Uranus | the 7th planet from the sun
the eighth planet from the sun | Neptune | Neptune | the 8th planet from the sun
the largest moon of Saturn | Titan | Titan | the largest of the satellites of Saturn
the brightest star in the night sky | Sirius | Sirius | the brightest star in the sky
the nearest star to the sun | Proxima Centauri | Proxima_Centauri | the nearest star to the sun
the galaxy that we live in | the Milky Way | Milky_Way | the galaxy containing the solar system
the longest river in the world | the Nile | Nile | the world's longest river
the second longest river in the world | the Amazon | Amazon | the world's 2nd longest river
the longest river in Europe | the Volga | Volga | the longest river in Europe
the longest river in England | the Thames | Thames | the longest river in England
the highest mountain in the world | Mount Everest | Mount_Everest | the highest mountain peak in the world
the highest mountain in Africa | Kilimanjaro | Kilimanjaro | the highest peak in Africa
the highest mountain in North America | Mount McKinley | Mount_McKinley | the highest peak in North America
the highest mountain in the Alps | Mont Blanc | Mont_Blanc | the highest mountain peak in the Alps
the highest waterfall in the world | Angel Falls | Angel_Falls | the highest waterfall
the largest ocean in the world | the Pacific Ocean | Pacific_Ocean | the largest ocean in the world
the second largest ocean in the world | the Atlantic Ocean | Atlantic_Ocean | the 2nd largest ocean
the largest desert in the world | the Sahara | Sahara | the world's largest desert
the largest continent | Asia | Asia | the largest continent
the second largest continent | Africa | Africa | the second largest continent
the smallest continent | Australia | Australia | the smallest continent
the continent at the South Pole | Antarctica | Antarctica | an extremely cold continent at the south pole
the largest island in the world | Greenland | Greenland | the largest island in the world
the largest freshwater lake in the world | Lake Superior | Lake_Superior | the largest freshwater lake in the world
the deepest lake in the world | Lake Baikal | Lake_Baikal | the deepest lake in the world
the smallest state of the United States | Rhode Island | Rhode_Island | the smallest state
the largest city of China | Shanghai | Shanghai | the largest city of China
the largest Greek island | Crete | Crete | the largest Greek island
the largest animal that ever lived | the blue whale | blue_whale | largest mammal ever known
the fastest animal on land | the cheetah | cheetah | the swiftest mammal
the largest bird | the ostrich | ostrich | largest living bird
the tallest animal | the giraffe | giraffe | tallest living quadruped
the largest lizard | the Komodo dragon | Komodo_dragon | the largest lizard in the world
the largest snake | the reticulated python | reticulated_python | the largest snake in the world
the largest penguin | the emperor penguin | emperor_penguin | the largest penguin
the smallest monkey | the pygmy marmoset | pygmy_marmoset | the smallest monkey
the longest bone of the human body | the femur | femur | the longest and thickest bone of the human skeleton
the largest organ of the human body | the skin | skin | your skin is the largest organ of your body
the lightest element | hydrogen | hydrogen | the simplest and lightest and most abundant element
the only metal that is liquid at room temperature | mercury | mercury | the only metal that is liquid
the highest court of the United States | the Supreme Court | Supreme_Court | the highest federal court
""".strip().splitlines())  # fmt: skip

DEEDS = tuple(Record(*row.split(" | ")) for row in """
wrote Don Quixote | Miguel de Cervantes | Miguel_de_Cervantes | best remembered for `Don Quixote'
was the first President of the United States | George Washington | George_Washington | 1st President
wrote the Divine Comedy | Dante | Dante | famous for writing the Divine Comedy
wrote the Iliad and the Odyssey | Homer | Homer | the Iliad and the Odyssey
created Frankenstein's monster | Mary Shelley | Mary_Shelley | created Frankenstein's monster
discovered the New World | Christopher Columbus | Christopher_Columbus | discovered the New World
discovered Uranus | William Herschel | William_Herschel | discovered the planet Uranus
discovered Pluto | Clyde Tombaugh | Clyde_Tombaugh | discovered the planet Pluto
discovered penicillin | Alexander Fleming | Alexander_Fleming | discovered penicillin
discovered radium | Marie Curie | Marie_Curie | radium
discovered oxygen | Joseph Priestley | Joseph_Priestley | oxygen
discovered the law of gravitation | Isaac Newton | Isaac_Newton | his law of gravitation
formulated the theory of relativity | Albert Einstein | Albert_Einstein | the special theory of relativity
formulated the theory of evolution | Charles Darwin | Charles_Darwin | theory of evolution by natural selection
stated the laws of planetary motion | Johannes Kepler | Johannes_Kepler | first stated laws of planetary motion
invented the telephone | Alexander Graham Bell | Alexander_Graham_Bell | of the telephone
invented the phonograph | Thomas Edison | Thomas_Edison | inventions included the phonograph
invented dynamite | Alfred Nobel | Alfred_Nobel | invention of dynamite
invented the airplane | the Wright brothers | Orville_Wright | invented the airplane
invented the wireless telegraph | Guglielmo Marconi | Guglielmo_Marconi | invented wireless telegraphy
developed the telegraph | Samuel Morse | Samuel_Morse | patented the telegraph
improved the steam engine | James Watt | James_Watt | improvements in the steam engine
was the first to print with movable type in Europe | Johannes Gutenberg | Johannes_Gutenberg | movable type
was the first man on the moon | Neil Armstrong | Neil_Armstrong | the first man to set foot on the Moon
was the first person in space | Yuri Gagarin | Yuri_Gagarin | the first person to travel in space
was the first to reach the South Pole | Roald Amundsen | Roald_Amundsen | the first to reach the South Pole
was the first to climb Mount Everest | Edmund Hillary | Edmund_Hillary | first attained the summit of Mount Everest
led the first voyage around the world | Ferdinand Magellan | Ferdinand_Magellan | the first to circumnavigate the world
proved the Pythagorean theorem | Pythagoras | Pythagoras | proved the Pythagorean theorem
was the teacher of Plato | Socrates | Socrates | teacher of Plato
was the teacher of Aristotle | Plato | Plato | teacher of Aristotle
was the teacher of Alexander the Great | Aristotle | Aristotle | teacher of Alexander the Great
became emperor of the French | Napoleon | Napoleon | who became emperor of the French
led India to home rule | Mahatma Gandhi | Mahatma_Gandhi | struggle with Great Britain for home rule
put the sun at the center of the solar system | Copernicus | Copernicus | solar system with the sun in the center
""".strip().splitlines())  # fmt: skip

COUNTS = tuple(Record(*row.split(" | ")) for row in """
days does a week have | a week has seven days | week | seven consecutive days
days does a year have | a year has 365 or 366 days | twelvemonth | 365 (or 366) days
seconds does a minute have | a minute has 60 seconds | minute | equal to 60 seconds
minutes does an hour have | an hour has 60 minutes | hour | 60_minutes
hours does a day have | a day has 24 hours | day | 24-hour
years does a decade have | a decade has ten years | decade | a period of 10 years
years does a century have | a century has 100 years | century | a period of 100 years
legs does a spider have | a spider has eight legs | spider | with eight legs
arms does an octopus have | an octopus has eight arms | octopus | eight long tentacles
sides does a triangle have | a triangle has three sides | triangle | a three-sided polygon
sides does a square have | a square has four sides | square | four equal sides
sides does a pentagon have | a pentagon has five sides | pentagon | a five-sided polygon
sides does a hexagon have | a hexagon has six sides | hexagon | a six-sided polygon
sides does an octagon have | an octagon has eight sides | octagon | an eight-sided polygon
strings does a violin have | a violin has four strings | violin | this instrument has four strings
""".strip().splitlines())  # fmt: skip


def gloss_facts(folder: Path) -> Iterator[Fact]:
    """Yield the facts above: kinds "record", "deed" and "count".

    Args:
        folder: holds WordNet's data.noun.

    Raises:
        ValueError: if the definitions in that folder do not state one of them.
    """
    lines = (folder / "data.noun").read_text(encoding="utf-8").splitlines()
    for kind, records in (("record", RECORDS), ("deed", DEEDS), ("count", COUNTS)):
        for record in records:
            if not any(f" {record.lemma} " in line and record.evidence in line for line in lines):
                raise ValueError(
                    f"WordNet's `{record.lemma}` must state {record.evidence!r}, but no definition in {folder} does; "
                    "correct the entry in records.py."
                )
            yield Fact(kind, record.a, record.b)
