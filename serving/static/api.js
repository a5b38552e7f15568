// Requests to the server. Errors carry the reason that the server gives.

export async function get(path, values = {}) {
  return read(await fetch(`${path}?${query(values)}`));
}

export async function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();  // fetch cannot tell how much it has sent
    request.open("POST", `/api/uploads?${query({ name: file.name })}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = event => onProgress(event.loaded / event.total);
    request.onload = () => read(new Response(request.response, { status: request.status }))
      .then(resolve, reject);
    request.onerror = () => reject(new Error("the server does not answer; is it still running?"));
    request.send(file);
  });
}

export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return new URLSearchParams(given).toString();
}

async function read(response) {
  let content = {};
  try {
    content = await response.json();
  } catch {
    content.error = `the server answers with status ${response.status}`;
  }
  if (!response.ok) throw Object.assign(new Error(content.error), { status: response.status });
  return content;
}
