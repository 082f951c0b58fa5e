/** The question takes both documents. */
export const DOCUMENTS = [
  { title: "Train to Bergen", text: "The morning train to Bergen leaves at 8:05 and costs 40 crowns." },
  { title: "Bus to Bergen", text: "The morning bus to Bergen leaves at 7:30 and costs 25 crowns." },
];

export const QUESTION = "What does the train cost, and what does the bus cost?";

export const MAX_TOKENS = 64;
