/** What the tiny model's vocabulary is learnt from: plain sentences in the words of its tests. */
export const TINY_TEXT = `The old mill stands by the river. A mason built the mill from grey stone, and his daughter kept the books.
Every morning the miller opened the gate, and the water turned the wheel. In winter the river froze and the wheel stood still.
Who built the old mill? When did the bridge open? Where does the road lead? What did the carpenter make, and why was it lost?
The bridge was opened in the year 1874 by the mayor of the town. It has four arches and is two hundred metres long.
A document tells a story. Another document tells the same story in other words. Read both documents before you answer the question.
You are a helpful assistant. Answer the question from the documents. If the documents do not say, say that you do not know.
The gateway takes a request and asks the router for a place. The router looks at the workers and chooses two of them.
One worker computes the prompt and the other one generates the answer. The blocks travel from one to the other while the first computes.
When the last block is verified the sequence joins the running batch, and the tokens stream to the client one after another.
If a worker dies its blocks are freed, its leases end, and the request fails with a reason that tells what to do next.
Numbers: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, thirty, forty, fifty, a hundred, a thousand.
Colours: red, orange, yellow, green, blue, violet, black, white, grey, brown. Days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.
Write a short poem about the sea. Tell me about the mountains of the north. Name three rivers of Europe and the cities on their banks.
function add(left, right) { return left + right; } const values = [1, 2, 3]; for (const value of values) { console.log(value); }
The quick brown fox jumps over the lazy dog while the patient cat watches from the garden wall and thinks about its dinner.
She was born in a small village near the coast, and moved to the capital when she was nineteen to study mathematics and music.
He wrote to his brother every week. The letters were found a century later in a wooden box under the floor of the house.
Summarise the following text in two sentences. Translate the last line. Explain the difference between speed and velocity to a child.
It rained for seven days. On the eighth day the sun came out, and the children ran down to the harbour to see the ships return.
`;
