// Greets somebody: an HTTP function for Knative's runtime for Node.js.
//
// Takes JSON: {"name": "Ada"}. Gives JSON: {"greeting": "Hello, Ada!"}. With {"fail": true} it throws an error, of which
// the runtime makes a response with the status 500 and the error's message.
//
// Protocol http. The runtime listens on the port in FUNC_PORT and is ready when /health/readiness says so.

// Handles one request: what is known of it, and its body, parsed where it is JSON.
const handle = async (context, body) => {
  console.error(`greeting for invocation ${context.headers['x-function-invocation-id']}`);
  if (body.fail) {
    throw new Error('asked to fail');
  }
  return { greeting: `Hello, ${body.name}!` };
};

module.exports = { handle };
