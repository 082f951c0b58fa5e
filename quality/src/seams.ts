import { drawsFrom } from "./draw.ts";
import { holdsGold, type Question } from "./question.ts";

const WOMEN = [
  "Ada Brandt",
  "Clara Voss",
  "Edith Lindqvist",
  "Greta Amsel",
  "Ida Moreau",
  "Klara Hjort",
  "Mina Castell",
  "Olga Ferrante",
];
const MEN = [
  "Anton Keller",
  "Bruno Hasek",
  "Carl Winther",
  "Emil Sorokin",
  "Franz Delgado",
  "Hugo Lindt",
  "Jonas Arden",
  "Viktor Salo",
];
const CRAFTS = [
  "glassblower",
  "clockmaker",
  "bookbinder",
  "violin maker",
  "mapmaker",
  "shipbuilder",
  "potter",
  "bell founder",
];
const TOWNS = [
  "Harrow",
  "Lindau",
  "Marbeck",
  "Osterby",
  "Pellworth",
  "Quillan",
  "Rosvik",
  "Tarnow",
  "Ulmen",
  "Varnhem",
];
const WORKS = [
  "a blue glass ship",
  "a silver clock",
  "a great globe",
  "a red cello",
  "a bronze bell",
  "a map of the coast",
];
const PRICES = ["ninety crowns", "two hundred crowns", "forty crowns", "six hundred crowns"];

interface Person {
  readonly name: string;
  readonly subject: "She" | "He";
  readonly craft: string;
  readonly home: string;
  readonly birthplace: string;
  readonly year: number;
  readonly work: string;
  readonly price: string;
}

/** What is asked, and the sentence that answers it with a pronoun for the person. */
const FACTS: readonly {
  readonly told: (person: Person) => string;
  readonly asked: (person: Person) => string;
  readonly gold: (person: Person) => string;
}[] = [
  {
    told: (p) => `${p.subject} was born in ${p.birthplace} and came to ${p.home} as a child.`,
    asked: (p) => `Where was ${p.name} born?`,
    gold: (p) => p.birthplace,
  },
  {
    told: (p) => `${p.subject} made ${p.work} that was shown in every town of the valley.`,
    asked: (p) => `What did ${p.name} make?`,
    gold: (p) => p.work.replace(/^a /, ""),
  },
  {
    told: (p) => `${p.subject} opened a workshop in ${p.year} and worked there for thirty years.`,
    asked: (p) => `In which year did ${p.name} open a workshop?`,
    gold: (p) => String(p.year),
  },
  {
    told: (p) => `${p.subject} sold the last piece for ${p.price} to a merchant.`,
    asked: (p) => `For how much did ${p.name} sell the last piece?`,
    gold: (p) => p.price,
  },
];

/**
 * A question whose answer stands in a passage that begins with a pronoun; whom it means, the passage before ends with. Two people of
 * different gender, two passages each: whoever reads the passages apart cannot tell whose fact is whose.
 */
export function seamQuestion(index: number): Question {
  const draw = drawsFrom(index + 1);
  const pick = <T>(from: readonly T[], not?: T): T => {
    const choices = from.filter((entry) => entry !== not);
    return choices[draw(choices.length)] as T;
  };
  const person = (names: readonly string[], subject: Person["subject"], other?: Person): Person => {
    const home = pick(TOWNS, other?.home);
    return {
      name: pick(names),
      subject,
      craft: pick(CRAFTS, other?.craft),
      home,
      birthplace: pick(
        TOWNS.filter((town) => town !== other?.birthplace && town !== other?.home),
        home,
      ),
      year: 1821 + draw(120),
      work: pick(WORKS, other?.work),
      price: pick(PRICES, other?.price),
    };
  };
  const woman = person(WOMEN, "She");
  const man = person(MEN, "He", woman);
  const people = draw(2) === 0 ? [woman, man] : [man, woman];
  const fact = FACTS[draw(FACTS.length)] as (typeof FACTS)[number];
  const asked = people[draw(2)] as Person;
  const documents = people.flatMap((one) => [
    {
      text: `In the old quarter of ${one.home} there is a house with a green door. For many years it belonged to a ${one.craft} named ${one.name}.`,
    },
    { text: `${fact.told(one)} People in ${one.home} still speak of it.` },
  ]);
  return { id: `seam-${index}`, documents, question: fact.asked(asked), gold: fact.gold(asked) };
}

/** Whether the answer stands in one passage only; by chance a town can be in two. */
export function isUnambiguous({ documents, gold = "" }: Question): boolean {
  return documents.filter(({ text }) => holdsGold(text, gold)).length === 1;
}
