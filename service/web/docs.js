/** The interface's documentation: Swagger UI over this service's OpenAPI document. */

window.SwaggerUIBundle({
  url: "openapi.json",
  domNode: document.getElementById("docs"),
  layout: "BaseLayout",
  deepLinking: true,
  showExtensions: true,
  validatorUrl: null, // no other host is told of this service
});
