// Greets somebody: an HTTP function for Google's Functions Framework.
//
// Takes JSON: {"name": "Ada"}. Gives JSON: {"greeting": "Hello, Ada!"}. With {"fail": true} it throws an error, of which
// the framework makes a response with the status 500.
//
// Protocol http. The framework listens on the port in PORT and has no path of its own to ask if it is ready.

const functions = require('@google-cloud/functions-framework');

// Handles one request: Express's request and response.
functions.http('greet', (request, response) => {
  console.error(`greeting for invocation ${request.get('x-function-invocation-id')}`);
  if (request.body.fail) {
    throw new Error('asked to fail');
  }
  response.json({ greeting: `Hello, ${request.body.name}!` });
});
